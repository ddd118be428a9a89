// Large blocks of memory, kept from step to step.
//
// XLA's CPU backend takes the temporary memory of a step anew at every call (posix_memalign) and gives it back after it
// (free). glibc maps blocks of that size anew, and the kernel clears them page by page: a quarter of a step that needs
// 600 MiB. Keeping them in glibc's heap does not help reliably: posix_memalign asks for a little more than it returns
// and gives the rest back, so a freed block is too small for the next request of its own size once somebody else took
// that rest, and two or three blocks come to exist where one would do.
//
// So these two functions are led here for XLA's library alone, by overwriting its entries of the table through which
// it calls them. Blocks from kSmallest bytes on come from the kernel in pages of 2 MiB and, when freed, wait here for
// the next request of about their size. A request that finds none sends those back to the system that waited through
// the one before it too, so programs that run again and again meet their own blocks and nothing older is hoarded.
// Everything else goes to the C library as before.
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr size_t kPage = size_t{1} << 21;
constexpr size_t kSmallest = size_t{1} << 22;

// Never destroyed: XLA frees until the process ends.
std::mutex& mutex = *new std::mutex;
std::map<void*, size_t>& used = *new std::map<void*, size_t>;
struct Waiting {
  void* block;
  uint64_t since;  // misses before it was freed
};
std::multimap<size_t, Waiting>& waiting = *new std::multimap<size_t, Waiting>;
uint64_t misses = 0;  // requests that found no block

// Bytes at a 2 MiB border, in huge pages where the system has them; null when there is no memory.
void* map_block(size_t bytes) {
  auto* raw = static_cast<char*>(
      mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (raw == MAP_FAILED) return nullptr;
  auto* block = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw) + kPage - 1) / kPage * kPage);
  if (block > raw) munmap(raw, block - raw);
  if (raw + kPage > block) munmap(block + bytes, raw + kPage - block);
  madvise(block, bytes, MADV_HUGEPAGE);
  return block;
}

int take(void** result, size_t alignment, size_t size) {
  if (size < kSmallest || size > PTRDIFF_MAX - 2 * kPage || alignment > kPage) return posix_memalign(result, alignment, size);
  const size_t bytes = (size + kPage - 1) / kPage * kPage;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = waiting.lower_bound(bytes);
  if (found != waiting.end() && found->first <= bytes + bytes / 8) {
    *result = found->second.block;
    used.emplace(found->second.block, found->first);
    waiting.erase(found);
    return 0;
  }
  for (auto it = waiting.begin(); it != waiting.end();) {
    if (it->second.since < misses) {
      munmap(it->second.block, it->first);
      it = waiting.erase(it);
    } else {
      ++it;
    }
  }
  ++misses;
  void* block = map_block(bytes);
  if (block == nullptr) return ENOMEM;
  used.emplace(block, bytes);
  *result = block;
  return 0;
}

void give(void* block) {
  if (block != nullptr && reinterpret_cast<uintptr_t>(block) % kPage == 0) {
    std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = used.find(block); found != used.end()) {
      waiting.emplace(found->second, Waiting{block, misses});
      used.erase(found);
      return;
    }
  }
  free(block);
}

struct Search {
  const char* library;
  int replaced;  // functions, of two
};

// Called for every loaded library; stops at the one that is searched for. The addresses in its dynamic section are those
// of the process: glibc has relocated them.
int replace(dl_phdr_info* info, size_t, void* argument) {
  auto* search = static_cast<Search*>(argument);
  if (std::strstr(info->dlpi_name, search->library) == nullptr) return 0;
  const ElfW(Dyn)* dynamic = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type == PT_DYNAMIC) {
      dynamic = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    }
  }
  if (dynamic == nullptr) return 1;
  const ElfW(Sym)* symbols = nullptr;
  const char* names = nullptr;
  const ElfW(Rela)* tables[2] = {nullptr, nullptr};
  size_t sizes[2] = {0, 0};
  for (; dynamic->d_tag != DT_NULL; ++dynamic) {
    switch (dynamic->d_tag) {
      case DT_SYMTAB: symbols = reinterpret_cast<const ElfW(Sym)*>(dynamic->d_un.d_ptr); break;
      case DT_STRTAB: names = reinterpret_cast<const char*>(dynamic->d_un.d_ptr); break;
      case DT_JMPREL: tables[0] = reinterpret_cast<const ElfW(Rela)*>(dynamic->d_un.d_ptr); break;
      case DT_PLTRELSZ: sizes[0] = dynamic->d_un.d_val; break;
      case DT_RELA: tables[1] = reinterpret_cast<const ElfW(Rela)*>(dynamic->d_un.d_ptr); break;
      case DT_RELASZ: sizes[1] = dynamic->d_un.d_val; break;
    }
  }
  if (symbols == nullptr || names == nullptr) return 1;
  const uintptr_t page = sysconf(_SC_PAGESIZE);
  // free first: a block that is taken before its free is led here would be given to the C library
  const struct { const char* name; void* to; } wanted[] = {{"free", reinterpret_cast<void*>(&give)},
                                                           {"posix_memalign", reinterpret_cast<void*>(&take)}};
  for (const auto& one : wanted) {
    int found = 0;
    for (int t = 0; t < 2; ++t) {
      for (size_t i = 0; tables[t] != nullptr && i < sizes[t] / sizeof(ElfW(Rela)); ++i) {
        const ElfW(Rela)& entry = tables[t][i];
        const auto type = ELF64_R_TYPE(entry.r_info);
        if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT && type != R_X86_64_64) continue;
        const ElfW(Sym)& symbol = symbols[ELF64_R_SYM(entry.r_info)];
        if (ELF64_R_SYM(entry.r_info) == 0 || std::strcmp(names + symbol.st_name, one.name) != 0) continue;
        const uintptr_t place = info->dlpi_addr + entry.r_offset;
        if (mprotect(reinterpret_cast<void*>(place / page * page), page, PROT_READ | PROT_WRITE) != 0) return 1;
        *reinterpret_cast<void**>(place) = one.to;
        ++found;
      }
    }
    if (found == 0) return 1;
    ++search->replaced;
  }
  return 1;
}

}  // namespace

// Lead posix_memalign and free of the loaded library whose path contains `library` here. 0 where that was possible.
extern "C" int min_llm_keep_blocks(const char* library) {
  Search search{library, 0};
  dl_iterate_phdr(replace, &search);
  return search.replaced == 2 ? 0 : 1;
}
