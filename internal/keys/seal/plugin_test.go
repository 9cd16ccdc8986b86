package seal_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys/seal"
)

// said by a plugin that does what it should.
const (
	goodStanza = "-> recipient-stanza 0 tk a b\nAQID\n"
	goodDone   = "-> done\n\n"
)

func TestWhatAPluginSays(t *testing.T) {
	full := strings.Repeat("A", 64) + "\n"
	const told = "-> add-recipient age1tk1x\n\n-> wrap-file-key\nAAECAwQFBgcICQoLDA0ODw\n-> extension-labels\n\n-> done\n\n"
	const ended = "it ended without an answer, or said too much"
	const noBody = "it said what is no body of a stanza"
	const noStanza = "it said what is no stanza"
	tests := []struct {
		name, output, replies string
		want                  string // stanzas and labels, or the error
	}{
		{"a stanza", goodStanza + goodDone, "ok", "tk [a b] 010203 []"},
		{
			"two, of long bodies", "-> recipient-stanza 0 tk\n" + full + "\n-> recipient-stanza 0 kt\n" + full + "AQ\n" + goodDone, "ok ok",
			"tk [] " + strings.Repeat("00", 48) + " kt [] " + strings.Repeat("00", 48) + "01 []",
		},
		{"labels", "-> labels postquantum\n\n" + goodStanza + goodDone, "ok ok", "tk [a b] 010203 [postquantum]"},
		{
			"questions and what is not known", "-> msg\nAQ\n-> confirm AQ\n\n-> request-public\n\n-> request-secret\n\n-> grease-1 2\n\n" + goodStanza + goodDone,
			"fail fail fail fail unsupported ok", "tk [a b] 010203 []",
		},
		{"an error", "-> error internal\nbm8\n", "", "no"},
		{"an error without a word", "-> error internal\n\n", "", "it gave no reason"},
		{"nothing", "", "", ended},
		{"half a line", "-> done", "", ended},
		{"no body", "-> done\n", "", ended},
		{"half a body", goodStanza[:len(goodStanza)-1], "", ended},
		{"too much", strings.Repeat("-> grease\n\n", 100_000), strings.Repeat(" unsupported", 95325)[1:], ended},
		{"no stanza", goodDone, "", "it returned 0 stanzas, not 1 to 64"},
		{"too many", strings.Repeat(goodStanza, 65) + goodDone, strings.Repeat(" ok", 65)[1:], "it returned 65 stanzas, not 1 to 64"},
		{"for another file", "-> recipient-stanza 1 tk\n\n" + goodDone, "", "it returned a stanza for what it was not given"},
		{"without a type", "-> recipient-stanza 0\n\n" + goodDone, "", "it returned a stanza for what it was not given"},
		{"labels twice", "-> labels\n\n-> labels\n\n", "ok", "it returned labels twice"},
		{"text", "Hello!\n", "", noStanza},
		{"no type", "-> \n\n", "", noStanza},
		{"two spaces", "-> recipient-stanza  0 tk\n\n", "", noStanza},
		{"a control character", "-> recipient-stanza 0 tk\x1b\n\n", "", noStanza},
		{"a long line", "-> recipient-stanza 0 tk\n" + full[:64] + "AAAA\n\n", "", noBody},
		{"padding", "-> recipient-stanza 0 tk\nAQ==\n", "", noBody},
		{"loose base64", "-> recipient-stanza 0 tk\nAR\n", "", noBody},
		{"a carriage return", "-> recipient-stanza 0 tk\nAQ\r\n", "", noBody},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stanzas, labels, said, err := seal.Converse([]byte(tt.output), "age1tk1x", []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
			got := ""
			for _, s := range stanzas {
				got += fmt.Sprintf("%s %v %x ", s.Type, s.Args, s.Body)
			}
			if got += fmt.Sprint(labels); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("what it said differs (-want +got):\n%s", diff)
			}
			var replies strings.Builder
			for _, word := range strings.Fields(tt.replies) {
				replies.WriteString("-> " + word + "\n\n")
			}
			if want := told + replies.String(); said != want {
				t.Errorf("it was told %.200q, want %.200q", said, want)
			}
		})
	}
}

// FuzzPlugin has a plugin say anything. What is taken of it can be said again.
func FuzzPlugin(f *testing.F) {
	f.Add([]byte(goodStanza + goodDone))
	f.Add([]byte("-> labels a b\n\n-> recipient-stanza 0 X25519\n" + strings.Repeat("A", 64) + "\n\n" + goodStanza + goodDone))
	f.Add([]byte("-> error internal\nbm8\n"))
	f.Fuzz(func(t *testing.T, output []byte) {
		stanzas, labels, _, err := seal.Converse(output, "age1tk1x", make([]byte, 16))
		if err != nil {
			return
		}
		again := ""
		if labels != nil {
			again = stanza("labels", labels, nil)
		}
		for _, s := range stanzas {
			again += stanza("recipient-stanza", append([]string{"0", s.Type}, s.Args...), s.Body)
		}
		same, sameLabels, _, err := seal.Converse([]byte(again+goodDone), "age1tk1x", make([]byte, 16))
		if err != nil || cmp.Diff(stanzas, same) != "" || fmt.Sprint(labels) != fmt.Sprint(sameLabels) {
			t.Errorf("%q is read as %v, %v, and written again as %v, %v, %v", output, stanzas, labels, same, sameLabels, err)
		}
	})
}

// stanza writes one.
func stanza(kind string, args []string, body []byte) string {
	text := strings.Join(append([]string{"->", kind}, args...), " ") + "\n"
	encoded := encode(body)
	for len(encoded) >= 64 {
		text, encoded = text+encoded[:64]+"\n", encoded[64:]
	}
	return text + encoded + "\n"
}
