package chain_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/expect"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/terminal"
	"teekms/internal/attest/simtd"
)

var update = flag.Bool("update", false, "write the golden files")

// variable is what differs from run to run.
var variable = regexp.MustCompile(`[0-9a-f]{12,}|\d{4}-\d\d-\d\d(T[0-9:.]+Z)?|\b\d{3,} bytes`)

func golden(t *testing.T, name, got string) {
	t.Helper()
	got = variable.ReplaceAllStringFunc(got, func(s string) string {
		switch {
		case strings.Contains(s, "bytes"):
			return "N bytes"
		case strings.Contains(s, "-"):
			return "DATE"
		default:
			return "HEX"
		}
	})
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestOutput(t *testing.T) {
	good := kmstest.New(t, simtd.Config{})
	bad := kmstest.New(t, simtd.Config{})
	bad.Rewrite(t, func(m map[string]string) { m["quote"], m["eventlog"] = flip(m["quote"], 0xb8), "" })
	cfg := config(bad)
	cfg.Expect = expected(t, "domain", "kms.example.org")
	cfg.SecondOpinion = true
	reports := map[string]*chain.Report{"good": check(t, good, config(good)), "bad": check(t, bad, cfg)}
	for name, r := range reports {
		t.Run(name, func(t *testing.T) {
			r.Location = "certs"
			for i := range r.Links {
				r.Links[i].Detail = strings.ReplaceAll(r.Links[i].Detail, bad.Dir, "certs")
			}
			var text bytes.Buffer
			r.WriteText(terminal.New(&text, func(string) string { return "" }))
			golden(t, name+".txt", text.String())
			doc, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", string(doc)+"\n")
		})
	}
}

// TestJSONGivesExpectations holds what docs/kmsctl.md promises: the claims of a
// report can be made into a file of expectations by picking names.
func TestJSONGivesExpectations(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	doc, err := json.Marshal(check(t, k, config(k)))
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Claims map[string]any `json:"claims"`
	}
	if err := json.Unmarshal(doc, &report); err != nil {
		t.Fatal(err)
	}
	picked := map[string]any{}
	for _, name := range expect.Names() {
		v, ok := report.Claims[name]
		if !ok {
			t.Errorf("claims have no %s", name)
		}
		picked[name] = v
	}
	cfg := config(k)
	if err := cfg.Expect.AddText("the report", kmstest.JSON(t, picked)); err != nil {
		t.Fatal(err)
	}
	if r := check(t, k, cfg); !r.OK {
		t.Errorf("Check() with the claims of the same KMS = %v, want ok", r.Err())
	}
}
