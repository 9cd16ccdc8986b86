package osimage

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"

	"teekms/internal/attest"
	"teekms/internal/durable"
)

// The bounds of an allowlist.
const (
	maxAllowlist = 4 << 20
	maxKnown     = 10000
)

// known is an image in an allowlist. RTMR0 is not in it: that is of the machine.
type known struct{ mrtd, rtmr1, rtmr2 attest.Measurement }

type imageHash [HashSize]byte

type knownImages map[imageHash][]known

// parseAllowlist reads TOML: any number of [[image]] with os_image_hash (64 hex
// digits), mrtd, rtmr1 and rtmr2 (96), and optionally a note. There is nothing
// else in it. An image may be there several times, with other registers.
func parseAllowlist(text []byte) (knownImages, error) {
	var file struct {
		Image []struct {
			OSImageHash string `toml:"os_image_hash"`
			MRTD        string `toml:"mrtd"`
			RTMR1       string `toml:"rtmr1"`
			RTMR2       string `toml:"rtmr2"`
			Note        string `toml:"note"`
		} `toml:"image"`
	}
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&file); err != nil {
		if detail, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return nil, fmt.Errorf("unknown key %q", detail.Errors[0].Key())
		}
		return nil, err
	}
	if len(file.Image) > maxKnown {
		return nil, fmt.Errorf("more than %d images", maxKnown)
	}
	list := knownImages{}
	for i, e := range file.Image {
		var hash imageHash
		var k known
		for _, field := range []struct {
			name, text string
			into       []byte
		}{
			{"os_image_hash", e.OSImageHash, hash[:]},
			{"mrtd", e.MRTD, k.mrtd[:]},
			{"rtmr1", e.RTMR1, k.rtmr1[:]},
			{"rtmr2", e.RTMR2, k.rtmr2[:]},
		} {
			// A register of zeros is one that nothing was measured into.
			b, err := hex.DecodeString(field.text)
			if err != nil || len(b) != len(field.into) || bytes.Count(b, []byte{0}) == len(b) {
				return nil, fmt.Errorf("image %d: %s is not %d hex digits, or zero", i+1, field.name, 2*len(field.into))
			}
			copy(field.into, b)
		}
		list[hash] = append(list[hash], k)
	}
	return list, nil
}

// allowlist reads its file again when size, time or identity have changed.
type allowlist struct {
	name string
	now  func() time.Time

	mu   sync.Mutex // guards what follows
	seen os.FileInfo
	list knownImages
	err  error
}

// images returns the list as it is now. An invalid file is an error until it is
// mended: the list before may hold what was meant to go.
func (a *allowlist) images() (knownImages, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	info, err := os.Stat(a.name)
	if err != nil {
		a.seen = nil
		return nil, fmt.Errorf("reading allowlist of images: %w", err)
	}
	if a.seen != nil && os.SameFile(a.seen, info) && a.seen.Size() == info.Size() && a.seen.ModTime().Equal(info.ModTime()) {
		return a.list, a.err
	}
	text, err := durable.OS{}.ReadFile(a.name, maxAllowlist)
	if err == nil {
		a.list, err = parseAllowlist(text)
	}
	if a.seen, a.err = info, nil; err != nil {
		a.list, a.err = nil, fmt.Errorf("reading allowlist of images %q: %w", a.name, err)
	}
	// A file that was written just now may change again without its time
	// doing so.
	if a.now().Sub(info.ModTime()) < time.Second {
		a.seen = nil
	}
	return a.list, a.err
}

// find compares a quote with the entries of an image: listed is whether there
// are any, and the register is the first that differs in the entry that agrees
// the longest.
func (l knownImages) find(hash imageHash, c *attest.Claims) (listed bool, mismatch string) {
	agreed := -1
	for _, k := range l[hash] {
		n, register := k.compare(c)
		if register == "" {
			return true, ""
		}
		if n > agreed {
			agreed, mismatch = n, register
		}
	}
	return agreed >= 0, mismatch
}

func (k *known) compare(c *attest.Claims) (agreed int, mismatch string) {
	switch {
	case k.mrtd != c.MRTD:
		return 0, registerMRTD
	case k.rtmr1 != c.RTMR[1]:
		return 1, registerRTMR1
	case k.rtmr2 != c.RTMR[2]:
		return 2, registerRTMR2
	}
	return 3, ""
}
