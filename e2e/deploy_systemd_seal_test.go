package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// judgment is what systemd-analyze security says of one setting of a unit.
type judgment struct {
	Name        string `json:"name"`
	Set         bool   `json:"set"`
	Description string `json:"description"`
}

// TestSystemdSealShowsTheTPMAlone has systemd judge the units with the drop-in
// for a TPM: they keep a /dev of their own, and may use that device besides.
func TestSystemdSealShowsTheTPMAlone(t *testing.T) {
	for _, unit := range []string{"kms.service", "kms-onboard.service"} {
		t.Run(unit, func(t *testing.T) {
			judged := judge(t, unit, "seal-tpm.conf")
			if d := judged["PrivateDevices="]; !d.Set {
				t.Errorf("PrivateDevices= is not set (%q), want a /dev of the unit's own", d.Description)
			}
			const want = "special devices: char-rtc:r /dev/tpmrm0:rw"
			if d := judged["DeviceAllow="]; !strings.HasSuffix(d.Description, want) {
				t.Errorf("DeviceAllow= is judged %q, want ...%q", d.Description, want)
			}
		})
	}
}

// judge returns systemd's opinion of a unit with a drop-in. Offline it reads one
// file, so the drop-in is appended to the unit.
func judge(t *testing.T, unit, dropIn string) map[string]judgment {
	t.Helper()
	var whole []byte
	for _, name := range []string{unit, dropIn} {
		part, err := os.ReadFile(filepath.Join("../deploy/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		whole = append(append(whole, part...), '\n')
	}
	path := filepath.Join(t.TempDir(), unit)
	write(t, path, string(whole), 0o644)
	out := outputOf(t, exec.Command("systemd-analyze", "security", "--offline=true", "--json=short", "--no-pager", path))
	var list []judgment
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("systemd-analyze security %s: %v\n%s", unit, err, out)
	}
	judged := make(map[string]judgment, len(list))
	for _, j := range list {
		judged[j.Name] = j
	}
	return judged
}
