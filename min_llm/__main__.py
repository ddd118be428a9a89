"""`python -m min_llm <verb>`: the same as `min-llm <verb>`."""

from min_llm.cli.main import main

if __name__ == "__main__":
    main()
