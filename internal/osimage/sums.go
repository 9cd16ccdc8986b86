package osimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

const (
	sumsName     = "sha256sum.txt"
	metadataName = "metadata.json"
	maxSums      = 64 << 10
	maxFiles     = 256
)

// sums are the files of an image by name, as its sha256sum.txt lists them. The
// SHA-256 of that file is the image's hash.
type sums map[string][sha256.Size]byte

// parseSums reads lines of 64 lower-case hex digits, a space, a space or "*",
// and a flat name.
func parseSums(text []byte) (sums, error) {
	if len(text) > maxSums {
		return nil, fmt.Errorf("%s too large", sumsName)
	}
	s := sums{}
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		const head = 2*sha256.Size + 2
		if len(line) <= head || line[head-2] != ' ' || line[head-1] != ' ' && line[head-1] != '*' {
			return nil, fmt.Errorf("%s has a line that is no checksum", sumsName)
		}
		var sum [sha256.Size]byte
		digits := line[:2*sha256.Size]
		if _, err := hex.Decode(sum[:], digits); err != nil || !bytes.Equal(digits, bytes.ToLower(digits)) {
			return nil, fmt.Errorf("%s has a line that is no checksum", sumsName)
		}
		name := string(line[head:])
		if _, twice := s[name]; twice || !flatName(name) || name == sumsName {
			return nil, fmt.Errorf("%s lists %.40q: not a flat name, or twice", sumsName, name)
		}
		if s[name] = sum; len(s) > maxFiles {
			return nil, fmt.Errorf("%s lists more than %d files", sumsName, maxFiles)
		}
	}
	if len(s) == 0 {
		return nil, errors.New(sumsName + " is empty")
	}
	return s, nil
}

// flatName says whether a name can be that of a file of an image: letters,
// digits and "._+-", not beginning with a dot.
func flatName(name string) bool {
	if name == "" || len(name) > 128 || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.' || c == '_' || c == '+' || c == '-':
		default:
			return false
		}
	}
	return true
}
