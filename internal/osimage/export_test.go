package osimage

import (
	"io"
	"net/http"
	"os"
)

// What the fuzz targets reach, which has no way of its own from outside.

// ParseLite reads a measurement document.
func ParseLite(b []byte) error {
	_, err := parseLite(b)
	return err
}

// ParseSums returns how many files a sha256sum.txt lists.
func ParseSums(b []byte) (map[string][32]byte, error) { return parseSums(b) }

// ParseAllowlist returns how many images an allowlist has.
func ParseAllowlist(b []byte) (int, error) {
	list, err := parseAllowlist(b)
	return len(list), err
}

// ParseMemory returns the memory size that a VM config tells.
func ParseMemory(text string) (uint64, error) {
	c, err := parseVMConfig(text)
	return c.MemorySize, err
}

// ParseMetadata returns the names of the files that a metadata.json names.
func ParseMetadata(b []byte) ([]string, error) {
	m, err := parseMetadata(b)
	if err != nil {
		return nil, err
	}
	return []string{m.Kernel, m.Initrd, m.BIOS}, nil
}

// Unpack unpacks an archive and returns the checksums of its files.
func Unpack(dir *os.Root, archive io.Reader, limit int64) (map[string][32]byte, error) {
	return unpack(dir, archive, limit)
}

// FlatName says whether an image may have a file of that name.
func FlatName(name string) bool { return flatName(name) }

// Client is what downloads when the configuration has no other.
func Client() *http.Client { return client() }
