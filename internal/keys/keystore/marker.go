package keystore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// The marker of a stage, one file a line in publishing order, then the digest of
// all lines before it, so that a torn marker is none:
//
//	teekms stage 1
//	sha256-hex name
//	...
//	end sha256-hex
//
// That of a resealing has the digest of the old file too, or "-" where none has
// to be known:
//
//	teekms reseal 1
//	old-sha256-hex new-sha256-hex name
//	...
//	end sha256-hex
const (
	markerHead = "teekms stage 1"
	resealHead = "teekms reseal 1"
	markerEnd  = "end "
	noOld      = "-"
	maxMarker  = 4 << 10
)

type marker struct {
	resealing bool
	lines     []markerLine
}

type markerLine struct {
	name   string
	digest [sha256.Size]byte
	// old is the digest of the private file that is replaced; replaces says
	// that there is one.
	old      [sha256.Size]byte
	replaces bool
}

// marshalMarker writes the marker of a stage whose files replace no private
// file.
func marshalMarker(files fileSet) []byte {
	m := marker{}
	for _, name := range files.names() {
		m.lines = append(m.lines, markerLine{name: name, digest: sha256.Sum256(files[name])})
	}
	return m.marshal()
}

// resealing returns the marker of files that replace the private files with
// these digests.
func resealing(old map[string][sha256.Size]byte, files fileSet) marker {
	m := marker{resealing: true}
	for _, name := range files.names() {
		l := markerLine{name: name, digest: sha256.Sum256(files[name])}
		if isPrivate(name) {
			l.old, l.replaces = old[name], old[name] != [sha256.Size]byte{}
		}
		m.lines = append(m.lines, l)
	}
	return m
}

func (m marker) marshal() []byte {
	var b bytes.Buffer
	if m.resealing {
		fmt.Fprintln(&b, resealHead)
	} else {
		fmt.Fprintln(&b, markerHead)
	}
	for _, l := range m.lines {
		switch {
		case m.resealing && l.replaces:
			fmt.Fprintf(&b, "%x ", l.old)
		case m.resealing:
			fmt.Fprint(&b, noOld+" ")
		}
		fmt.Fprintf(&b, "%x %s\n", l.digest, l.name)
	}
	fmt.Fprintf(&b, "%s%x\n", markerEnd, sha256.Sum256(b.Bytes()))
	return b.Bytes()
}

// wholeMarker returns the lines of a marker before its own digest, false where
// that is not right: it is torn.
func wholeMarker(text []byte) (lines string, ok bool) {
	lines, end, ok := strings.Cut(string(text), "\n"+markerEnd)
	if !ok || end != fmt.Sprintf("%x\n", sha256.Sum256([]byte(lines+"\n"))) {
		return "", false
	}
	return lines, true
}

// parseMarker reports false for everything that is not written here.
func parseMarker(text []byte) (marker, bool) {
	lines, ok := wholeMarker(text)
	if !ok {
		return marker{}, false
	}
	rows := strings.Split(lines, "\n")
	m := marker{resealing: rows[0] == resealHead}
	if !m.resealing && rows[0] != markerHead || len(rows) < 2 {
		return marker{}, false
	}
	for _, row := range rows[1:] {
		l := markerLine{}
		if m.resealing {
			if row, ok = l.parseOld(row); !ok {
				return marker{}, false
			}
		}
		digest, name, _ := strings.Cut(row, " ")
		if l.name, ok = name, parseDigest(l.digest[:], digest); !ok || !isOurs(name) || l.replaces && !isPrivate(name) {
			return marker{}, false
		}
		m.lines = append(m.lines, l)
	}
	return m, m.plausible() && bytes.Equal(m.marshal(), text)
}

// plausible reports whether no file is named twice and a resealing has all
// private files: they are of one sealing, always.
func (m marker) plausible() bool {
	named := map[string]bool{}
	for _, l := range m.lines {
		named[l.name] = true
	}
	missing := func(name string) bool { return !named[name] }
	return len(named) == len(m.lines) && (!m.resealing || !slices.ContainsFunc(privateFiles(), missing))
}

// parseOld takes the first field off a row.
func (l *markerLine) parseOld(row string) (rest string, ok bool) {
	old, rest, _ := strings.Cut(row, " ")
	if old == noOld {
		return rest, true
	}
	l.replaces = true
	return rest, parseDigest(l.old[:], old)
}

func parseDigest(into []byte, text string) bool {
	if len(text) != hex.EncodedLen(len(into)) {
		return false
	}
	_, err := hex.Decode(into, []byte(text))
	return err == nil
}
