package seal_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"teekms/internal/keys/seal"
)

// TestHeaderThatIsNotOursIsRefused changes one file of a set, as somebody can
// who opens nothing.
func TestHeaderThatIsNotOursIsRefused(t *testing.T) {
	_, vault := holder(t)
	set := newSet(t, tpm(), passphrase("correct horse"), vault)
	files, others := sealed(t, set), sealed(t, set)
	const name = "root-k256.key"
	head := func(data []byte) string {
		var first string
		reheader(t, data, func(s []string) []string { first = s[0]; return s })
		return first
	}
	mine := strings.Fields(head(files[name])) // teekms-file v1 NAME SET TIME
	first := func(args ...string) func([]string) []string {
		return func(s []string) []string { s[0] = strings.Join(args, " ") + "\n"; return s }
	}
	long := strings.Repeat("a", 257)
	prefix := "cannot open root-k256.key: "
	tests := []struct {
		name   string
		change func(stanzas []string) []string
		want   string
	}{
		{"no teekms-file", func(s []string) []string { return s[1:] }, "its header must begin with the only teekms-file stanza"},
		{"teekms-file doubled", func(s []string) []string { return append(s, s[0]) }, "its header must begin with the only teekms-file stanza"},
		{"teekms-file last", func(s []string) []string { return append(s[1:], s[0]) }, "its header must begin with the only teekms-file stanza"},
		{"teekms-file of another file", first(strings.Fields(head(files["rpc.key"]))...), "it holds rpc.key: files were mixed up"},
		{
			"teekms-file of another sealing", first(strings.Fields(head(others[name]))...),
			"it is of another sealing than root-ca.key, rpc.key, tmp-ca.key",
		},
		{"another version", first(mine[0], "v2", mine[2], mine[3], mine[4]), "its teekms-file stanza is of a version that this program does not know"},
		{"no version", first(mine[0]), "its teekms-file stanza is of a version that this program does not know"},
		{"argument missing", first(mine[:4]...), "its teekms-file stanza is malformed"},
		{"argument more", first(append(slices.Clone(mine), "x")...), "its teekms-file stanza is malformed"},
		{"body", func(s []string) []string { s[0] += "AAAA"; return s }, "its teekms-file stanza is malformed"},
		{"long name", first(mine[0], mine[1], long, mine[3], mine[4]), "the name in its teekms-file stanza is malformed"},
		{"short set", first(mine[0], mine[1], mine[2], "AAAA", mine[4]), "the set of its teekms-file stanza is malformed"},
		{"set of loose base64", first(mine[0], mine[1], mine[2], mine[3]+"==", mine[4]), "the set of its teekms-file stanza is malformed"},
		{"signed time", first(mine[0], mine[1], mine[2], mine[3], "+"+mine[4]), "the time of its teekms-file stanza is malformed"},
		{"time before all", first(mine[0], mine[1], mine[2], mine[3], "-1"), "the time of its teekms-file stanza is malformed"},
		{"time after all", first(mine[0], mine[1], mine[2], mine[3], "253402300800"), "the time of its teekms-file stanza is malformed"},
		{"another time", first(mine[0], mine[1], mine[2], mine[3], "1760000001"), "it is not sealed as root-ca.key is"},
		{"seal removed", func(s []string) []string { return slices.Delete(s, 2, 3) }, "it is not sealed as root-ca.key is"},
		{"seal doubled", func(s []string) []string { return append(s, s[2]) }, "it has two teekms-tpm stanzas"},
		{"seals in another order", func(s []string) []string { s[2], s[3] = s[3], s[2]; return s }, "it is not sealed as root-ca.key is"},
		{"escrow's list removed", func(s []string) []string { return slices.Delete(s, 1, 2) }, "it is not sealed as root-ca.key is"},
		{"escrow's list doubled", func(s []string) []string { return append(s, s[1]) }, "it has two teekms-escrow stanzas"},
		{"escrow's list of another version", func(s []string) []string { s[1] = strings.Replace(s[1], "v1", "v2", 1); return s }, "its teekms-escrow stanza is of a version that this program does not know"},
		{"escrow's list with a control character", func(s []string) []string {
			s[1] = "teekms-escrow v1\n" + base64.RawStdEncoding.EncodeToString([]byte("age1\x1b[31m"))
			return s
		}, "its teekms-escrow stanza is malformed"},
		{"escrow's list empty", func(s []string) []string { s[1] = "teekms-escrow v1\n"; return s }, "its teekms-escrow stanza is malformed"},
		{"escrow's key removed", func(s []string) []string { return slices.Delete(s, 4, 5) }, "its header was changed, or it is cut off"},
		{"escrow's key moved", func(s []string) []string { s[3], s[4] = s[4], s[3]; return s }, "its header was changed, or it is cut off"},
		{"stanza of somebody added", func(s []string) []string { return append(s, "somebody 1 2\nAAAA") }, "its header was changed, or it is cut off"},
		{"seal of a later version added", func(s []string) []string { return append(s, "teekms-moon v1 2\nAAAA") }, "it is not sealed as root-ca.key is"},
		{"seal with another argument", func(s []string) []string {
			s[2] = strings.Replace(s[2], "teekms-tpm v1 ", "teekms-tpm v1 X", 1)
			return s
		}, "it is not sealed as root-ca.key is"},
		{"seal without arguments", func(s []string) []string { s[2] = "teekms-tpm v1\nAAAA"; return s }, "its teekms-tpm stanza is malformed"},
		{"seal with a short salt", func(s []string) []string { s[2] = "teekms-tpm v1 x AAAA\nAAAA"; return s }, "the salt of its teekms-tpm stanza is malformed"},
		{"seal with many arguments", func(s []string) []string {
			s[2] = "teekms-tpm v1" + strings.Repeat(" x", 13) + " " + salt + "\nAAAA"
			return s
		}, "its teekms-tpm stanza: its 13 arguments are over the 12 that a key source may have"},
		{"seal with a long argument", func(s []string) []string {
			s[2] = "teekms-tpm v1 " + strings.Repeat("x", 4097) + " " + salt + "\nAAAA"
			return s
		}, "its teekms-tpm stanza: an argument is empty, too long or not printable"},
		{"seal without a name", func(s []string) []string { s[2] = "teekms- v1\nAAAA"; return s }, "it has a stanza of ours with a malformed name"},
		{"seal with a long name", func(s []string) []string { s[2] = "teekms-" + long + " v1\nAAAA"; return s }, "it has a stanza of ours with a malformed name"},
		{"65 stanzas", func(s []string) []string {
			for len(s) < 65 {
				s = append(s, "x\n")
			}
			return s
		}, "its 65 stanzas are over the 64 that a header may have"},
		{"1025 stanzas", func(s []string) []string {
			for len(s) < 1025 {
				s = append(s, "x\n")
			}
			return s
		}, "its header is damaged or cut off"},
		{"header over 64 KiB", func(s []string) []string {
			return append(s, "x\n"+strings.Repeat(strings.Repeat("A", 64)+"\n", 1024))
		}, "its first 65536 bytes are no whole header: it is damaged or too large"},
		{"malformed stanza", func(s []string) []string { return append(s, "x\n!!!") }, "its header is damaged or cut off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changed := reheader(t, files[name], tt.change)
			wantRefusal(t, set, with(files, name, changed), prefix+tt.want)
		})
	}
	got, err := set.Open(t.Context(), with(files, name, reheader(t, files[name], func(s []string) []string { return s })))
	wantPlain(t, got, err)
}

// salt is a well-formed one.
const salt = "AAAAAAAAAAAAAAAAAAAAAA"

func TestFilesThatAreNotOfOneSealingAreRefused(t *testing.T) {
	set := newSet(t, tpm(), passphrase("correct horse"))
	files, older := sealed(t, set), sealed(t, set)
	elsewhere := sealed(t, newSet(t, passphrase("correct horse")))
	tests := []struct {
		name  string
		files map[string][]byte
		want  string
	}{
		{
			"swapped contents", with(with(files, "root-ca.key", files["root-k256.key"]), "root-k256.key", files["root-ca.key"]),
			"cannot open root-ca.key: it holds root-k256.key: files were mixed up",
		},
		{
			"one content under another's name", with(files, "root-k256.key", files["root-ca.key"]),
			"cannot open root-k256.key: it holds root-ca.key: files were mixed up",
		},
		{
			"a file of another directory with the same passphrase", with(files, "rpc.key", elsewhere["rpc.key"]),
			"cannot open rpc.key: it is of another sealing than root-ca.key, root-k256.key, tmp-ca.key",
		},
		{
			"a file of an older sealing", with(files, "root-ca.key", older["root-ca.key"]),
			"cannot open root-ca.key: it is of another sealing than root-k256.key, rpc.key, tmp-ca.key",
		},
		{
			"two of an older sealing", with(with(files, "rpc.key", older["rpc.key"]), "tmp-ca.key", older["tmp-ca.key"]),
			"cannot open rpc.key: it is of another sealing than root-ca.key, root-k256.key",
		},
		{"a plain file", with(files, "rpc.key", []byte("the key of the listener")), "cannot open rpc.key: it is not sealed (no age file)"},
		{"an empty file", with(files, "rpc.key", nil), "cannot open rpc.key: it is not sealed (no age file)"},
		{
			"an armored file", with(files, "rpc.key", []byte("-----BEGIN AGE ENCRYPTED FILE-----\n")),
			"cannot open rpc.key: it is not sealed (no age file)",
		},
		{
			"a file over 1 MiB", with(files, "rpc.key", append(bytes.Clone(files["rpc.key"]), make([]byte, 1<<20)...)),
			fmt.Sprintf("cannot open rpc.key: its %d bytes are over the 1048576 that a sealed file may have", len(files["rpc.key"])+1<<20),
		},
		{"no file", nil, "opening 0 files: 1 to 16 can be"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantRefusal(t, set, tt.files, tt.want) })
	}
	got, err := set.Open(t.Context(), map[string][]byte{"rpc.key": files["rpc.key"]})
	if err != nil || !got["rpc.key"].Equal(plain()["rpc.key"]) {
		t.Errorf("Open(one file of the set) = %v, want it", err)
	}
	got, err = set.Open(t.Context(), older)
	wantPlain(t, got, err) // a whole older sealing opens: docs/seal.md#limits
}

// TestAFileOfAgeIsNotOurs has an escrow's key encrypt a file as the age command
// does.
func TestAFileOfAgeIsNotOurs(t *testing.T) {
	id, vault := holder(t)
	set := withIdentities(t, []age.Identity{id}, tpm(), vault)
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("forged"))
	w.Close()
	wantRefusal(t, set, map[string][]byte{"rpc.key": buf.Bytes()},
		"cannot open rpc.key: its header must begin with the only teekms-file stanza")
}

// TestPayloadIsBounded seals more than ours may hold, with age itself and the
// header of ours: the holder of the escrow can do that.
func TestPayloadIsBounded(t *testing.T) {
	id, vault := holder(t)
	set := withIdentities(t, []age.Identity{id}, tpm(), vault)
	forge := func(size int) map[string][]byte {
		var buf bytes.Buffer
		w, err := age.Encrypt(&buf, ourFile("rpc.key"), id.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, size))
		w.Close()
		return map[string][]byte{"rpc.key": buf.Bytes()}
	}
	const most = 900 << 10
	if got, err := set.Open(t.Context(), forge(most)); err != nil || got["rpc.key"].Len() != most {
		t.Errorf("Open(900 KiB) = %v, want it", err)
	}
	wantRefusal(t, set, forge(most+1), "cannot open rpc.key: its content is over the limit of 921600 bytes")
}

// ourFile writes the stanza that names a file.
type ourFile string

func (f ourFile) Wrap([]byte) ([]*age.Stanza, error) {
	return []*age.Stanza{{Type: "teekms-file", Args: []string{"v1", string(f), salt, "1"}}}, nil
}

// TestEveryBitOfTheHeaderAndEveryByteOfTheRestIsProtected flips them in one
// file, which is not the first that is opened.
func TestEveryBitOfTheHeaderAndEveryByteOfTheRestIsProtected(t *testing.T) {
	_, vault := holder(t)
	words := &said{text: "correct horse"}
	set := newSet(t, tpm(), guestAgent("app"),
		seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: words.read, WorkFactor: 10})), vault)
	files := sealed(t, set)
	for _, name := range []string{"root-ca.key", "root-k256.key"} {
		data := files[name]
		header := bytes.Index(data, []byte("\n---")) + len("\n--- ") + 44
		if data[header-1] != '\n' || header > len(data)-32 {
			t.Fatalf("the header of %s does not end at %d", name, header)
		}
		flipped := 0
		for i := range data {
			for bit := range 8 {
				if i >= header && bit > 0 {
					break
				}
				flipped++
				changed := bytes.Clone(data)
				changed[i] ^= 1 << bit
				got, err := set.Open(t.Context(), with(files, name, changed))
				if err == nil || got != nil || !strings.HasPrefix(err.Error(), "cannot open ") || !strings.Contains(err.Error(), name) {
					t.Fatalf("Open() with bit %d of byte %d of %s flipped (%q) = %v, want a refusal that names it",
						bit, i, name, data[max(0, i-10):min(len(data), i+10)], err)
				}
			}
		}
		t.Logf("%s: %d flips in %d bytes, %d of them header", name, flipped, len(data), header)
	}
}

func TestAFileCutOffAnywhereIsRefused(t *testing.T) {
	_, vault := holder(t)
	set := newSet(t, tpm(), passphrase("correct horse"), vault)
	files := sealed(t, set)
	const name = "root-k256.key"
	for n := range files[name] {
		got, err := set.Open(t.Context(), with(files, name, files[name][:n]))
		if err == nil || got != nil || !strings.HasPrefix(err.Error(), "cannot open root-k256.key: ") {
			t.Fatalf("Open() with %s cut to %d bytes = %v, want a refusal that names it", name, n, err)
		}
	}
	for _, more := range []string{"\n", "\x00", string(files[name]), strings.Repeat("x", 70000)} {
		wantRefusal(t, set, with(files, name, append(bytes.Clone(files[name]), more...)),
			"cannot open root-k256.key: its content is damaged, cut off or has something after it")
	}
}

// TestALaterKindHindersNoOther opens a file that a later version sealed to
// something more, and a later version of a known seal.
func TestALaterKindHindersNoOther(t *testing.T) {
	id, vault := holder(t)
	seals := []seal.Seal{tpm(), vault}
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, ourFile("rpc.key"), later("teekms-moon"), later("teekms-passphrase"), id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("the key of the listener"))
	w.Close()
	files := map[string][]byte{"rpc.key": buf.Bytes()}
	got, err := withIdentities(t, []age.Identity{id}, seals...).Open(t.Context(), files)
	if err != nil || !got["rpc.key"].Equal(plain()["rpc.key"]) {
		t.Errorf("Open(sealed to the moon too) = %v, want it", err)
	}
	h, err := seal.Inspect("rpc.key", files["rpc.key"])
	if err != nil {
		t.Fatalf("Inspect() = %v, want a header", err)
	}
	if got, want := fmt.Sprint(h.Seals), "[{moon of a kind or version that this program does not know []} "+
		"{passphrase of a kind or version that this program does not know []} {escrow recipients not recorded []}]"; got != want {
		t.Errorf("Inspect().Seals = %s, want %s", got, want)
	}
	if !h.Made.Equal(time.Unix(1, 0)) {
		t.Errorf("Inspect().Made = %v, want second 1", h.Made)
	}
	wantRefusal(t, newSet(t, tpm(), passphrase("correct horse")), files,
		"cannot open rpc.key: tpm: not among the file's seals; "+
			"passphrase: its teekms-passphrase stanza is of a kind or version that this program does not know; "+
			"moon: sealed to moon, which core.seal does not configure; escrow: opens only with the key of its holder")
}

// later writes a stanza of a later version.
type later string

func (l later) Wrap([]byte) ([]*age.Stanza, error) {
	return []*age.Stanza{{Type: string(l), Args: []string{"v2"}, Body: []byte{1}}}, nil
}
