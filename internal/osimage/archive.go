package osimage

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// unpack writes the files of a gzipped tar archive into dir and returns their
// checksums. Names are flat, but for a leading "./"; links, devices and folders
// are refused, and so is a name that comes twice. All files together may have
// limit bytes.
func unpack(dir *os.Root, archive io.Reader, limit int64) (sums, error) {
	zipped, err := gzip.NewReader(archive)
	if err != nil {
		return nil, fmt.Errorf("opening image archive: %w", err)
	}
	// What the tar headers take is bounded by their number; what they say is
	// not read before the limit.
	left := limit
	files := sums{}
	for r := tar.NewReader(io.LimitReader(zipped, limit+maxFiles*(4<<20))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading image archive: %w", err)
		}
		if h.Typeflag == tar.TypeDir && (h.Name == "./" || h.Name == ".") {
			continue
		}
		name, err := member(h)
		if err != nil {
			return nil, err
		}
		if _, twice := files[name]; twice || len(files) == maxFiles {
			return nil, fmt.Errorf("image archive has %q twice, or more than %d files", name, maxFiles)
		}
		if left -= h.Size; left < 0 {
			return nil, fmt.Errorf("image archive holds more than %d bytes", limit)
		}
		if files[name], err = writeMember(dir, name, r); err != nil {
			return nil, fmt.Errorf("unpacking image archive: %w", err)
		}
	}
}

// member returns the name of a plain file.
func member(h *tar.Header) (string, error) {
	if h.Typeflag != tar.TypeReg {
		return "", fmt.Errorf("image archive has %.80q, which is no regular file", h.Name)
	}
	name := strings.TrimPrefix(h.Name, "./")
	if !flatName(name) {
		return "", fmt.Errorf("image archive has %.80q, which is no flat name", h.Name)
	}
	if h.Size < 0 {
		return "", errors.New("image archive has a file of negative size")
	}
	return name, nil
}

func writeMember(dir *os.Root, name string, r io.Reader) (sum [sha256.Size]byte, err error) {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), r)
	if err := errors.Join(err, f.Close()); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
