"""One file or folder here is one inverse problem; see docs/write-your-own.md."""
