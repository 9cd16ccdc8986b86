package seal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
)

// Bounds of what is read. They hold before any work is done on it.
const (
	maxFile     = 1 << 20  // bytes of a sealed file: the key store reads no more
	maxHeader   = 64 << 10 // bytes of its header
	maxStanzas  = 64
	maxArgs     = 12        // of one key source
	maxArg      = 4096      // bytes of one
	maxKind     = 32        // bytes of the name of a kind, known or not
	maxPayload  = 900 << 10 // bytes of the plain file, for which there is room beside any header
	maxFiles    = 16
	maxUnixTime = 253402300799 // the year 9999
)

// ageIntro begins every age file.
const ageIntro = "age-encryption.org/v1\n"

// Described is a seal of a file in words.
type Described struct {
	Kind Kind
	// Detail says what the seal is bound to, as far as this package knows; empty
	// for a TPM, whose source describes Args.
	Detail string
	// Args are the public arguments of the seal's key source.
	Args []string
}

// Header is what a sealed file says about itself. Nobody has vouched for it
// until the file is opened.
type Header struct {
	// Name is the file's name.
	Name string
	// Set is the same in all files of one sealing, and in no other.
	Set [16]byte
	// Made is the time of the sealing, in seconds, by the sealer's clock.
	Made time.Time
	// Seals are in the order of the file, escrow last.
	Seals []Described
	// Recipients are those of the escrow, as text.
	Recipients []string

	own     map[Kind]ownStanza
	escrow  bool
	ordered []Kind
}

// Sealed reports whether data begins as an age file does.
func Sealed(data []byte) bool { return bytes.HasPrefix(data, []byte(ageIntro)) }

// Inspect reads the header of the sealed file of that name without opening it.
// What it returns is not authenticated: whoever can write the file can write
// any of it.
func Inspect(name string, data []byte) (*Header, error) {
	stanzas, err := readStanzas(name, data)
	if err != nil {
		return nil, err
	}
	return parseHeader(name, stanzas)
}

// identity is an age identity made of a function, which may hold a context:
// age's interface has none.
type identity func([]*age.Stanza) ([]byte, error)

// Unwrap calls the function.
func (f identity) Unwrap(s []*age.Stanza) ([]byte, error) { return f(s) }

// readStanzas lets age parse the header of data and returns its stanzas.
func readStanzas(name string, data []byte) ([]*age.Stanza, error) {
	if len(data) > maxFile {
		return nil, refused(name, "its %d bytes are over the %d that a sealed file may have", len(data), maxFile)
	}
	if !Sealed(data) {
		return nil, refused(name, "it is not sealed (no age file)")
	}
	var seen []*age.Stanza
	// Age would read a header of 2 MiB: it is given no more than ours may have.
	_, err := age.Decrypt(bytes.NewReader(data[:min(len(data), maxHeader)]),
		identity(func(s []*age.Stanza) ([]byte, error) {
			seen = s
			return nil, age.ErrIncorrectIdentity
		}))
	switch {
	case err == nil || seen == nil && len(data) <= maxHeader:
		// Age's own error quotes the line, whatever that is.
		return nil, refused(name, "its header is damaged or cut off")
	case seen == nil:
		return nil, refused(name, "its first %d bytes are no whole header: it is damaged or too large", maxHeader)
	case len(seen) > maxStanzas:
		return nil, refused(name, "its %d stanzas are over the %d that a header may have", len(seen), maxStanzas)
	}
	return seen, nil
}

// parseHeader checks and reads the stanzas of the file of that name.
func parseHeader(name string, stanzas []*age.Stanza) (*Header, error) {
	h := &Header{own: map[Kind]ownStanza{}}
	for i, s := range stanzas {
		var err error
		switch {
		case (i == 0) != (s.Type == stanzaFile):
			err = fmt.Errorf("its header must begin with the only %s stanza", stanzaFile)
		case s.Type == stanzaFile:
			err = h.readFile(name, s)
		case s.Type == stanzaEscrow:
			err = h.readEscrow(s)
		case strings.HasPrefix(s.Type, stanzaPrefix):
			err = h.readOwn(s)
		default:
			h.escrow = true
		}
		if err != nil {
			return nil, refused(name, "%w", err)
		}
	}
	h.describe()
	return h, nil
}

// readFile reads "-> teekms-file v1 NAME SETID UNIXTIME".
func (h *Header) readFile(name string, s *age.Stanza) error {
	if len(s.Args) < 1 || s.Args[0] != stanzaVersion {
		return fmt.Errorf("its %s stanza is of a version that this program does not know", stanzaFile)
	}
	if len(s.Args) != 4 || len(s.Body) != 0 {
		return fmt.Errorf("its %s stanza is malformed", stanzaFile)
	}
	if !validPath(s.Args[1]) {
		return fmt.Errorf("the name in its %s stanza is malformed", stanzaFile)
	}
	if s.Args[1] != name {
		return fmt.Errorf("it holds %s: files were mixed up", s.Args[1])
	}
	set, err := encoding().DecodeString(s.Args[2])
	if err != nil || len(set) != len(h.Set) {
		return fmt.Errorf("the set of its %s stanza is malformed", stanzaFile)
	}
	made, err := strconv.ParseInt(s.Args[3], 10, 64)
	if err != nil || made < 0 || made > maxUnixTime || strconv.FormatInt(made, 10) != s.Args[3] {
		return fmt.Errorf("the time of its %s stanza is malformed", stanzaFile)
	}
	h.Name, h.Set, h.Made = name, [16]byte(set), time.Unix(made, 0).UTC()
	return nil
}

// readEscrow reads the list of the escrow's recipients.
func (h *Header) readEscrow(s *age.Stanza) error {
	if h.Recipients != nil {
		return fmt.Errorf("it has two %s stanzas", stanzaEscrow)
	}
	if !slices.Equal(s.Args, []string{stanzaVersion}) {
		return fmt.Errorf("its %s stanza is of a version that this program does not know", stanzaEscrow)
	}
	h.Recipients = strings.Split(string(s.Body), "\n")
	for _, r := range h.Recipients {
		if r == "" || !printable(r) {
			return fmt.Errorf("its %s stanza is malformed", stanzaEscrow)
		}
	}
	h.escrow = true
	return nil
}

// readOwn reads the stanza of a seal. One of a kind or version that is not
// known yet hinders no other from opening.
func (h *Header) readOwn(s *age.Stanza) error {
	kind := Kind(strings.TrimPrefix(s.Type, stanzaPrefix))
	if kind == "" || len(kind) > maxKind {
		return errors.New("it has a stanza of ours with a malformed name")
	}
	if _, ok := h.own[kind]; ok {
		return fmt.Errorf("it has two %s stanzas", s.Type)
	}
	h.ordered = append(h.ordered, kind)
	if !opensHere(kind) || len(s.Args) < 1 || s.Args[0] != stanzaVersion {
		h.own[kind] = ownStanza{err: fmt.Errorf("its %s stanza is of a kind or version that this program does not know", s.Type)}
		return nil
	}
	if len(s.Args) < 2 {
		return fmt.Errorf("its %s stanza is malformed", s.Type)
	}
	last := len(s.Args) - 1
	salt, err := encoding().DecodeString(s.Args[last])
	if err != nil || len(salt) != saltSize {
		return fmt.Errorf("the salt of its %s stanza is malformed", s.Type)
	}
	if err := checkArgs(s.Args[1:last]); err != nil {
		return fmt.Errorf("its %s stanza: %w", s.Type, err)
	}
	h.own[kind] = ownStanza{args: s.Args[1:last], salt: salt, body: s.Body}
	return nil
}

// checkArgs bounds the arguments of a key source.
func checkArgs(args []string) error {
	if len(args) > maxArgs {
		return fmt.Errorf("its %d arguments are over the %d that a key source may have", len(args), maxArgs)
	}
	for _, a := range args {
		if a == "" || len(a) > maxArg || !printable(a) || strings.Contains(a, " ") {
			return errors.New("an argument is empty, too long or not printable")
		}
	}
	return nil
}

// printable reports whether s is of printable ASCII and spaces.
func printable(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) < 0
}

// describe fills Seals.
func (h *Header) describe() {
	for _, k := range h.ordered {
		s := h.own[k]
		d := Described{Kind: k, Args: s.args}
		switch {
		case s.err != nil:
			d.Detail = "of a kind or version that this program does not know"
		case k == KindPassphrase:
			d.Detail = describePassphrase(s.args)
		case k == KindGuestAgent:
			d.Detail = describeGuestAgent(s.args)
		}
		h.Seals = append(h.Seals, d)
	}
	if h.escrow {
		h.Seals = append(h.Seals, Described{Kind: KindEscrow, Detail: countRecipients(len(h.Recipients))})
	}
}

// countRecipients says how many recipients an escrow has.
func countRecipients(n int) string {
	switch n {
	case 0:
		return "recipients not recorded"
	case 1:
		return "1 recipient"
	}
	return fmt.Sprintf("%d recipients", n)
}
