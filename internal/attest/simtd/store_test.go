package simtd_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func TestOpenMakesTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "td")
	td := open(t, simtd.Config{Dir: dir})
	if got, want := td.RootPath(), filepath.Join(dir, "root-ca.pem"); got != want {
		t.Errorf("RootPath() = %q, want %q", got, want)
	}
	var got []string
	for line := range strings.Lines(tree(t, dir)) {
		got = append(got, strings.Join(strings.Fields(line)[:2], " "))
	}
	want := []string{
		"drwxr-xr-x .",
		"drwxr-xr-x collateral",
		"-rw-r--r-- collateral/pck-crl-chain.pem",
		"-rw-r--r-- collateral/pck-crl.der",
		"-rw-r--r-- collateral/qe-identity-chain.pem",
		"-rw-r--r-- collateral/qe-identity.json",
		"-rw-r--r-- collateral/root-crl.der",
		"-rw-r--r-- collateral/tcb-info-chain.pem",
		"-rw-r--r-- collateral/tcb-info.json",
		"-rw-r--r-- root-ca.pem",
		"-rw------- td.json",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("directory (-want +got)\n%s", diff)
	}
	if anchor, err := tdx.LoadTrustAnchor(td.RootPath()); err != nil || !anchor.Equal(td.Root()) {
		t.Errorf("LoadTrustAnchor() = %v, %v, want the TD's root", anchor, err)
	}
}

func TestOpenAgainIsTheSameMachine(t *testing.T) {
	dir := t.TempDir()
	first := open(t, simtd.Config{Dir: dir})
	before := tree(t, dir)
	second := open(t, simtd.Config{Dir: dir})
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("directory after a second Open (-before +after)\n%s", diff)
	}
	if diff := cmp.Diff(first.Measurements(), second.Measurements()); diff != "" {
		t.Errorf("Measurements() (-first +second)\n%s", diff)
	}
	if first.RTMR() != second.RTMR() || !first.Root().Equal(second.Root()) || !first.PCK().Equal(second.PCK()) || !first.AttestationKey().Equal(second.AttestationKey()) {
		t.Error("registers, certificates or attestation key differ after a second Open")
	}
	if other := open(t, simtd.Config{}); other.Root().Equal(first.Root()) || other.PCK().SerialNumber.Cmp(first.PCK().SerialNumber) == 0 {
		t.Error("another directory has the same root or serial number")
	}
}

func TestProcessesThatOpenAtOnceAgree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "td")
	var cmds []*exec.Cmd
	outs := make([]strings.Builder, 6)
	for i := range outs {
		cmd := process(t, dir, 0)
		cmd.Stdout = &outs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	want := openAndVerify(dir) + "\n"
	for i := range outs {
		if got := outs[i].String(); got != want || !strings.HasPrefix(got, "root ") {
			t.Errorf("process %d says %q, want %q", i, got, want)
		}
	}
}

func TestReadOnlyDirectoryIsEnoughForAMadeOne(t *testing.T) {
	const nobody = 65534
	dir := publicDir(t)
	open(t, simtd.Config{Dir: dir, Now: func() time.Time { return time.Now().Add(-48 * time.Hour) }}) // stale files
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if os.Getuid() == 0 {
			if err := os.Chown(path, nobody, nobody); err != nil {
				return err
			}
		}
		if d.IsDir() {
			return os.Chmod(path, 0o555)
		}
		return os.Chmod(path, 0o444)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, _ error) error { return os.Chmod(path, 0o755) })
	})
	before := tree(t, dir)
	out, err := process(t, dir, nobody).Output()
	if err != nil || !strings.HasPrefix(string(out), "root ") {
		t.Errorf("opening as another user = %q, %v, want the root", out, err)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("directory (-before +after)\n%s", diff)
	}
}

func TestOpenMendsWhatFollowsFromTheState(t *testing.T) {
	dir := t.TempDir()
	open(t, simtd.Config{Dir: dir})
	// A crash may leave a file of collateral empty.
	if err := os.Truncate(filepath.Join(dir, "collateral/tcb-info.json"), 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root-ca.pem", "collateral/pck-crl.der"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := openAndVerify(dir); !strings.HasPrefix(got, "root ") {
		t.Errorf("opening what was damaged = %q, want the root", got)
	}
	if _, err := os.Lstat(filepath.Join(dir, "root-ca.pem")); err != nil {
		t.Errorf("root-ca.pem was not made again: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	overwrite := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// edit changes td.json as JSON.
	edit := func(f func(certs, keys, measurements map[string]any)) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, "td.json"))
			if err != nil {
				t.Fatal(err)
			}
			var s map[string]map[string]any
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			f(s["certificates"], s["keys"], s["measurements"])
			if b, err = json.Marshal(s); err != nil {
				t.Fatal(err)
			}
			overwrite("td.json", string(b))(t, dir)
		}
	}
	type m = map[string]any
	nothing := func(*testing.T, string) {}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		cfg    simtd.Config
		want   string
	}{
		{"another root", overwrite("root-ca.pem", "x"), simtd.Config{}, "root-ca.pem is not the root of this trust domain"},
		{"state that is none", overwrite("td.json", "x"), simtd.Config{}, "reading td.json: not the JSON that was written"},
		{"state cut to nothing", overwrite("td.json", "{}"), simtd.Config{}, "certificate: x509: malformed certificate"},
		{"state too large", overwrite("td.json", strings.Repeat(" ", 1<<20+1)), simtd.Config{}, "more than 1048576 bytes"},
		{"key of another certificate", edit(func(_, k, _ m) { k["pck"] = k["root"] }), simtd.Config{}, "reading td.json: pck key is not that of the certificate"},
		{"key that is none", edit(func(_, k, _ m) { k["tcb-signer"] = "AAAA" }), simtd.Config{}, "reading td.json: tcb-signer key: not PKCS#8"},
		{"attestation key missing", edit(func(_, k, _ m) { delete(k, "attestation") }), simtd.Config{}, "reading td.json: attestation key: not PKCS#8"},
		{"certificate that is none", edit(func(c, _, _ m) { c["pck-ca"] = "AAAA" }), simtd.Config{}, "reading td.json: pck-ca certificate: x509"},
		{"measurement cut", edit(func(_, _, x m) { x["mrtd"] = "00" }), simtd.Config{}, "reading td.json: mrtd of 1 bytes, want 48"},
		{"app id cut", edit(func(_, _, x m) { x["app_id"] = "00" }), simtd.Config{}, "reading td.json: app id of 1 bytes, want 20"},
		{"measurement not in hex", edit(func(_, _, x m) { x["mrtd"] = "zz" }), simtd.Config{}, "reading td.json: not the JSON that was written"},
		{"other FMSPC", nothing, simtd.Config{Measurements: simtd.Measurements{FMSPC: [6]byte{1}}}, "FMSPC is 50806f000000 by the directory's certificate, cannot be 010000000000"},
		{"app id of 3 bytes", nothing, simtd.Config{Measurements: simtd.Measurements{AppID: []byte{1, 2, 3}}}, "app id of 3 bytes, want 20"},
		{"image name too long", nothing, simtd.Config{Measurements: simtd.Measurements{Image: strings.Repeat("x", 2000)}}, "image name too long"},
		{"quote version 6", nothing, simtd.Config{Shape: simtd.Shape{Version: 6}}, "quote version is 6, want 4 or 5"},
		{"body type in version 4", nothing, simtd.Config{Shape: simtd.Shape{BodyType: 3}}, "a version 4 quote has no body type"},
		{"body type 4", nothing, simtd.Config{Shape: simtd.Shape{Version: 5, BodyType: 4}}, "quote body type is 4, want 2 or 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, simtd.Config{Dir: dir})
			tt.damage(t, dir)
			tt.cfg.Dir = dir
			_, err := simtd.Open(tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open() = %v, want error %q", err, tt.want)
			}
		})
	}
	if _, err := simtd.Open(simtd.Config{}); err == nil || !strings.Contains(err.Error(), "no directory given") {
		t.Errorf("Open(no directory) = %v, want an error that says so", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	overwrite("", "")(t, file)
	if _, err := simtd.Open(simtd.Config{Dir: file}); err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("Open(file) = %v, want an error that says so", err)
	}
	bad := filepath.Join(t.TempDir(), "td")
	if _, err := simtd.Open(simtd.Config{Dir: bad, Measurements: simtd.Measurements{AppID: []byte{1}}}); err == nil || !strings.Contains(err.Error(), "app id of 1 bytes") {
		t.Errorf("Open(new, app id of 1 byte) = %v, want an error that says so", err)
	}
	if entries, err := os.ReadDir(bad); err != nil || len(entries) != 0 {
		t.Errorf("a refused Open left %v, %v, want nothing", entries, err)
	}
}

func TestMeasurementsAreKept(t *testing.T) {
	dir := t.TempDir()
	def := open(t, simtd.Config{Dir: dir}).Measurements()
	set := simtd.Measurements{
		Image: "other", MRTD: attest.Measurement{1}, MRSeam: attest.Measurement{2}, MRConfigID: attest.Measurement{3},
		MROwner: attest.Measurement{4}, MROwnerConfig: attest.Measurement{5},
		Attributes: simtd.AttributeDebug | simtd.AttributeSEPTVEDisable, XFAM: 0x600e7, TEETCBSVN: [16]byte{9, 1},
		AppID: make([]byte, 20), ComposeHash: make([]byte, 32), InstanceID: make([]byte, 20), OSImageHash: make([]byte, 32),
		KeyProvider: "{}", Runtime: []simtd.RuntimeEvent{{Name: "only", Payload: []byte{1}}},
	}
	open(t, simtd.Config{Dir: dir, Measurements: set})
	got := open(t, simtd.Config{Dir: dir}) // without overrides
	set.FMSPC = def.FMSPC
	if diff := cmp.Diff(set, got.Measurements()); diff != "" {
		t.Errorf("Measurements() (-set +reopened)\n%s", diff)
	}
	if events := got.EventLog().RuntimeEvents(); len(events) != 1 || events[0].Name != "only" {
		t.Errorf("RuntimeEvents() = %v, want the one that was set", events)
	}
	// A field that is set leaves the others alone.
	one := open(t, simtd.Config{Dir: dir, Measurements: simtd.Measurements{MRTD: attest.Measurement{7}}})
	set.MRTD = attest.Measurement{7}
	if diff := cmp.Diff(set, one.Measurements()); diff != "" {
		t.Errorf("Measurements() (-want +got)\n%s", diff)
	}
}

func TestDefaultsFollowWhatIsSetLater(t *testing.T) {
	dir := t.TempDir()
	before := open(t, simtd.Config{Dir: dir}).Measurements()
	compose := make([]byte, 32)
	compose[0] = 0xab
	open(t, simtd.Config{Dir: dir, Measurements: simtd.Measurements{ComposeHash: compose, Image: "other"}})
	got := open(t, simtd.Config{Dir: dir}).Measurements()
	if !slices.Equal(got.AppID, compose[:20]) {
		t.Errorf("AppID = %x, want the beginning of the compose hash", got.AppID)
	}
	if want := append([]byte{1}, compose...); !slices.Equal(got.MRConfigID[:33], want) {
		t.Errorf("MRConfigID = %x, want %x and zeros", got.MRConfigID, want)
	}
	if got.MRTD == before.MRTD || slices.Equal(got.OSImageHash, before.OSImageHash) {
		t.Error("MRTD or OS image hash did not follow the image")
	}
	if !slices.Equal(got.InstanceID, before.InstanceID) {
		t.Errorf("InstanceID = %x, want %x as before", got.InstanceID, before.InstanceID)
	}
}

func TestImageDecidesTheMeasurementsOfABoot(t *testing.T) {
	a := open(t, simtd.Config{})
	b := open(t, simtd.Config{})
	c := open(t, simtd.Config{Measurements: simtd.Measurements{Image: "other"}})
	inA, inB := a.RTMR(), b.RTMR()
	if a.Measurements().MRTD != b.Measurements().MRTD || !slices.Equal(inA[:3], inB[:3]) {
		t.Error("two machines with one image differ in MRTD or RTMR0 to RTMR2")
	}
	if inA[3] == inB[3] {
		t.Error("two machines have the same RTMR3: the instance id is not random")
	}
	if a.Measurements().MRTD == c.Measurements().MRTD {
		t.Error("another image has the same MRTD")
	}
	for i, m := range inA {
		if m == c.RTMR()[i] || m == (attest.Measurement{}) {
			t.Errorf("RTMR%d = %x, want it to depend on the image", i, m)
		}
	}
}

func TestOpenCollateralMakesNothing(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := simtd.OpenCollateral(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenCollateral(missing) = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := os.Lstat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenCollateral made the directory")
	}
}

func TestFilesAreIssuedAnewWhenAnHourOld(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 5, 1, 12, 10, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	open(t, simtd.Config{Dir: dir, Now: clock})
	first := tree(t, dir)
	now = now.Add(45 * time.Minute)
	open(t, simtd.Config{Dir: dir, Now: clock})
	if diff := cmp.Diff(first, tree(t, dir)); diff != "" {
		t.Errorf("within the hour (-before +after)\n%s", diff)
	}
	now = now.Add(10 * time.Minute) // 13:05; the files are of 12:00
	td := open(t, simtd.Config{Dir: dir, Now: clock})
	if first == tree(t, dir) {
		t.Error("an hour later the files are the same")
	}
	source, err := simtd.OpenCollateral(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := source.Collateral(t.Context(), td.Measurements().FMSPC, tdx.PlatformCA)
	if err != nil || !strings.Contains(string(got.TCBInfo), `"issueDate":"2026-05-01T13:00:00Z","nextUpdate":"2026-05-31T13:00:00Z"`) {
		t.Errorf("TCB info in the files = %s, %v, want the dates of the new hour", got.TCBInfo, err)
	}
}

func TestAnEphemeralTDKeepsNothing(t *testing.T) {
	dir := t.TempDir()
	td := open(t, simtd.Config{Dir: dir})
	before := tree(t, dir)
	other := open(t, simtd.Config{Dir: dir, Ephemeral: true, Measurements: simtd.Measurements{ComposeHash: make([]byte, 32)}})
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("directory after an ephemeral Open (-before +after)\n%s", diff)
	}
	if !other.Root().Equal(td.Root()) || other.RTMR()[3] == td.RTMR()[3] || other.RTMR()[0] != td.RTMR()[0] {
		t.Errorf("an ephemeral TD with another compose hash has root %v and RTMRs %x, want the same root and another RTMR3 alone", other.Root().Subject, other.RTMR())
	}
	if again := open(t, simtd.Config{Dir: dir}); again.RTMR() != td.RTMR() {
		t.Errorf("RTMRs after an ephemeral Open = %x, want %x", again.RTMR(), td.RTMR())
	}
	missing := filepath.Join(t.TempDir(), "none")
	if _, err := simtd.Open(simtd.Config{Dir: missing, Ephemeral: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(missing, ephemeral) = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat(%s) = %v, want %v", missing, err, fs.ErrNotExist)
	}
}
