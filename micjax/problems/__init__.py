"""One file here is one inverse problem; see docs/write-your-own.md."""
