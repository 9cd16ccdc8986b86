package osimage

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"teekms/internal/attest"
)

const (
	hashInURL = "{OS_IMAGE_HASH}"
	// temporary begins the name of a folder that is being filled.
	temporary = ".new-"
	// staleAfter is when such a folder is one of a process that has died.
	staleAfter = 24 * time.Hour
	// expansion is how much larger than an archive its contents may be.
	expansion = 4
)

// store is the folder of downloaded images and what fills it.
type store struct {
	dir   string // one folder for each image, called by its hash
	url   string
	limit int64
	http  *http.Client
	now   func() time.Time
}

// checkURL says whether a download URL is one.
func checkURL(text string) error {
	u, err := url.Parse(strings.ReplaceAll(text, hashInURL, strings.Repeat("0", 2*HashSize)))
	if err != nil {
		return fmt.Errorf("reading download URL: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || !strings.Contains(text, hashInURL) {
		return errors.New("download URL is not an http or https URL with " + hashInURL)
	}
	return nil
}

// client is what downloads when the configuration has no other.
func client() *http.Client {
	return &http.Client{CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 3 {
			return errors.New("more than three redirects")
		}
		if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
			return errors.New("redirect from https to http")
		}
		return nil
	}}
}

// image returns the image from the folder, or else downloads it. An image that
// is damaged is downloaded again.
func (s *store) image(ctx context.Context, hash imageHash) (*image, error) {
	im, err := s.open(hash)
	if err == nil {
		return im, nil
	}
	if err := os.RemoveAll(s.path(hash)); err != nil {
		return nil, fmt.Errorf("removing damaged image: %w", err)
	}
	if err := s.download(ctx, hash); err != nil {
		return nil, err
	}
	return s.open(hash)
}

func (s *store) path(hash imageHash) string {
	return filepath.Join(s.dir, hex.EncodeToString(hash[:]))
}

func (s *store) open(hash imageHash) (*image, error) {
	dir, err := os.OpenRoot(s.path(hash))
	if err != nil {
		return nil, fmt.Errorf("opening image: %w", err)
	}
	defer func() { _ = dir.Close() }() // It was only read.
	return openImage(dir, hash)
}

// unusualKernel returns the digest of the image's kernel in a guest of unusual
// memory.
func (s *store) unusualKernel(hash imageHash, im *image, memory uint64) (attest.Measurement, error) {
	dir, err := os.OpenRoot(s.path(hash))
	if err != nil {
		return attest.Measurement{}, fmt.Errorf("opening image: %w", err)
	}
	defer func() { _ = dir.Close() }() // It was only read.
	listed, err := readSums(dir, hash)
	if err != nil {
		return attest.Measurement{}, err
	}
	return im.kernelDigest(dir, listed, memory)
}

// download fetches an image into a folder of its own, checks it there, and
// renames that folder into place.
func (s *store) download(ctx context.Context, hash imageHash) (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("making image cache: %w", err)
	}
	s.sweep()
	tmp, err := os.MkdirTemp(s.dir, temporary)
	if err != nil {
		return fmt.Errorf("making image cache: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := s.fetch(ctx, hash, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.path(hash)); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("keeping image: %w", err)
	} else if err != nil {
		// Another process was first. What it kept is checked when it is opened.
		return os.RemoveAll(tmp)
	}
	return nil
}

func (s *store) fetch(ctx context.Context, hash imageHash, tmp string) error {
	dir, err := os.OpenRoot(tmp)
	if err != nil {
		return fmt.Errorf("making image cache: %w", err)
	}
	defer func() { _ = dir.Close() }() // Its files have been closed.
	body, err := s.get(ctx, hash)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }() // It was only read.
	limited := &io.LimitedReader{R: body, N: s.limit + 1}
	files, err := unpack(dir, limited, expansion*s.limit)
	if limited.N == 0 {
		return fmt.Errorf("image archive larger than %d bytes", s.limit)
	}
	if err != nil {
		return err
	}
	return keepListed(dir, hash, files)
}

func (s *store) get(ctx context.Context, hash imageHash) (io.ReadCloser, error) {
	target := strings.ReplaceAll(s.url, hashInURL, hex.EncodeToString(hash[:]))
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("downloading image: %w", err)
	}
	// The archive is compressed; nothing else shall be undone on the way.
	r.Header.Set("Accept-Encoding", "identity")
	answer, err := s.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("downloading image: %w", err)
	}
	if answer.StatusCode != http.StatusOK || answer.ContentLength > s.limit {
		_ = answer.Body.Close() // It is not read.
		return nil, fmt.Errorf("downloading image: status %d, %d bytes", answer.StatusCode, answer.ContentLength)
	}
	return answer.Body, nil
}

// keepListed checks every file that is listed and removes those that are not
// needed: unlisted ones, and listed ones that are in no register by themselves.
func keepListed(dir *os.Root, hash imageHash, files sums) error {
	listed, err := readSums(dir, hash)
	if err != nil {
		return err
	}
	for name, want := range listed {
		if got, ok := files[name]; !ok || got != want {
			return fmt.Errorf("%s of the image is missing or has another checksum", name)
		}
	}
	meta, err := readMetadata(dir, listed)
	if err != nil {
		return err
	}
	needed := []string{sumsName, metadataName, meta.Kernel, meta.Initrd, meta.BIOS}
	for name := range files {
		if slices.Contains(needed, name) {
			continue
		}
		if err := dir.Remove(name); err != nil {
			return fmt.Errorf("dropping %s of the image: %w", name, err)
		}
	}
	return nil
}

// sweep removes what a process left that died while it downloaded.
func (s *store) sweep() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), temporary) && s.now().Sub(info.ModTime()) > staleAfter {
			_ = os.RemoveAll(filepath.Join(s.dir, e.Name())) // Tried again next time.
		}
	}
}
