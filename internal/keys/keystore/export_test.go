package keystore

import (
	"crypto/sha256"
	"fmt"
)

// MarshalInfo gives tests the other half of [ParseInfo].
func MarshalInfo(i *Info) ([]byte, error) { return i.marshal() }

// MarkedFiles returns the names in a marker, false where it is none.
func MarkedFiles(text []byte) ([]string, bool) {
	m, ok := parseMarker(text)
	var names []string
	for _, l := range m.lines {
		names = append(names, l.name)
	}
	return names, ok
}

// MarshalMarker writes what MarkedFiles reads.
func MarshalMarker(files map[string][]byte) []byte { return marshalMarker(files) }

// MarshalResealing writes the marker of files that replace others.
func MarshalResealing(old, files map[string][]byte) []byte {
	return resealing(fileSet(old).digests(), files).marshal()
}

// RemarshalMarker reads a marker and writes it again.
func RemarshalMarker(text []byte) []byte {
	m, _ := parseMarker(text)
	return m.marshal()
}

// EndMarker makes a whole marker of any lines.
func EndMarker(body string) []byte {
	return fmt.Appendf(nil, "%s%s%x\n", body, markerEnd, sha256.Sum256([]byte(body)))
}

// PlainFiles returns the private files of a bundle as they would be without
// seals.
func PlainFiles(b *Bundle) map[string][]byte {
	all, err := b.files()
	if err != nil {
		panic(err) // the bundle was made with valid keys
	}
	return all.private()
}
