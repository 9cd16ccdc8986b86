package e2e

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"teekms/internal/attest/simtd"
	"teekms/internal/authz"
	"teekms/internal/ratls"
	"teekms/internal/storage/storagetest/server"
)

// database is the environment of a KMS that keeps its records in a database of a
// server.
func database(t testing.TB, s *server.Server) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte(s.URL(s.NewDatabase(t))), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"DSTACK_KMS_CORE_DATABASE_TYPE=postgresql", "DSTACK_KMS_CORE_DATABASE_URL_FILE=" + file}
}

// twin is another KMS with the keys of k, in the same trust domain.
func (a *adminKMS) twin(t testing.TB, extra string) *adminKMS {
	t.Helper()
	b := &adminKMS{cache: filepath.Join(t.TempDir(), "cache"), port: freePort(t)}
	section := fmt.Sprintf(adminSection, b.cache, b.port, adminToken, "") + extra
	b.kmsDir = newKMS(t, "", section)
	b.TD = a.TD
	b.write(t, "", section)
	if err := os.CopyFS(b.Certs, os.DirFS(a.Certs)); err != nil {
		t.Fatal(err)
	}
	return b
}

// kmsctl runs the operator's client against the admin listener of a.
func (a *adminKMS) kmsctl(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := command(t, []string{"KMSCTL_ADMIN=" + a.admin("http"), "KMSCTL_ADMIN_TOKEN=" + adminToken}, "kmsctl", args...)
	return runCmd(t, cmd)
}

// mustKmsctl is kmsctl that succeeds.
func (a *adminKMS) mustKmsctl(t testing.TB, args ...string) string {
	t.Helper()
	code, stdout, stderr := a.kmsctl(t, args...)
	if code != 0 {
		t.Fatalf("kmsctl %q = %d, %s%s", args, code, stdout, stderr)
	}
	return stdout
}

// auditLine is a line of kmsctl audit list --json.
type auditLine struct {
	Seq    uint64            `json:"seq"`
	Kind   string            `json:"kind"`
	Fields map[string]string `json:"fields"`
}

// records are those of the audit log.
func (a *adminKMS) records(t testing.TB, kinds ...string) []auditLine {
	t.Helper()
	args := []string{"audit", "list", "--from", "0", "--limit", "0", "--json"}
	for _, kind := range kinds {
		args = append(args, "--kind", kind)
	}
	var all []auditLine
	for line := range strings.Lines(a.mustKmsctl(t, args...)) {
		var r auditLine
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

// verifies reads the whole log and checks it, against an older checkpoint too
// where there is one.
func (a *adminKMS) verifies(t testing.TB, older ...string) {
	t.Helper()
	args := []string{"audit", "verify", "--dir", a.Certs}
	for _, file := range older {
		args = append(args, "--checkpoint", file)
	}
	a.mustKmsctl(t, args...)
}

// self describes the workload that the trust domain of a is.
func (a *adminKMS) self(t testing.TB) authz.BootInfo {
	t.Helper()
	td := a.openTD(t)
	certificate, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: td})
	if err != nil {
		t.Fatal(err)
	}
	attested, err := a.appraiser(t, td).AppraiseCertificate(t.Context(), certificate.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	info, err := authz.Describe(attested, authz.DescribeOptions{VMConfig: td.VMConfig()})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

const registryAuthority = "[core.auth_api]\ntype = \"registry\"\n"

// vmConfig is a body of GetAppKey that names the machine of a.
func (a *adminKMS) vmConfig(t testing.TB) string {
	t.Helper()
	return `{"vm_config": ` + quoted(a.openTD(t).VMConfig()) + `}`
}

// appKey asks for a key and returns status and body.
func (a *adminKMS) appKey(t testing.TB, client *http.Client, body string) answer {
	t.Helper()
	return request(t, client, http.MethodPost, a.URL("https")+"/prpc/GetAppKey?json", body, nil)
}

// TestRegistryDecidesOnEveryReplica denies, then allows with one command what two
// replicas are asked for, then denies again.
func TestRegistryDecidesOnEveryReplica(t *testing.T) {
	t.Parallel()
	const extra = registryAuthority
	first := newAdminKMS(t, "", extra)
	second := first.twin(t, extra)
	env := append(database(t, servers.Shared(t, server.PostgreSQL)), "DSTACK_KMS_CORE_IMAGE_VERIFY=false")
	first.serve(t, exampleDomain, env...)
	second.serve(t, exampleDomain, env...)
	both := []*adminKMS{first, second}
	body, info := first.vmConfig(t), first.self(t)
	ask := func(status int, want string) {
		t.Helper()
		for i, k := range both {
			if a := k.appKey(t, k.workload(t, k.openTD(t)), body); a.StatusCode != status || !strings.Contains(a.body, want) {
				t.Errorf("replica %d: GetAppKey = %d %.300s, want %d with %s", i, a.StatusCode, a.body, status, want)
			}
		}
	}
	ask(http.StatusBadRequest, "KMS self authorization failed: KMS is not allowed: ")
	first.mustKmsctl(t, "registry", "tcb", "add", "UpToDate", "--comment", "e2e")
	second.mustKmsctl(t, "registry", "image", "add", fmt.Sprintf("%x", info.OSImageHash))
	first.mustKmsctl(t, "registry", "kms", "add", fmt.Sprintf("%x", info.MRAggregated), "--device", "any")
	ask(http.StatusBadRequest, "Boot denied: ")

	// The denial explains itself, on the other replica.
	code, stdout, _ := second.kmsctl(t, "registry", "explain", "--last", "1")
	if code != 3 || !strings.Contains(stdout, fmt.Sprintf("%x", info.AppID)) {
		t.Errorf("kmsctl registry explain = %d %s, want 3 and the application", code, stdout)
	}
	second.mustKmsctl(t, "registry", "app", "add", fmt.Sprintf("%x", info.AppID), "--compose-hash", fmt.Sprintf("%x", info.ComposeHash), "--device", "any")
	ask(http.StatusOK, `"disk_crypt_key"`)
	first.mustKmsctl(t, "registry", "app", "remove", "--yes", fmt.Sprintf("%x", info.AppID))
	ask(http.StatusBadRequest, "Boot denied: ")

	kinds := map[string]int{}
	for _, r := range first.records(t) {
		kinds[r.Kind]++
	}
	want := map[string]int{"bootstrap": 1, "configuration": 2, "start": 2, "registry_change": 5, "app_key": 2}
	for kind, n := range want {
		if kinds[kind] != n {
			t.Errorf("%d records of kind %s, want %d: %v", kinds[kind], kind, n, kinds)
		}
	}
	if kinds["denial"] < 4 {
		t.Errorf("%d denials are recorded, want 4 at least", kinds["denial"])
	}
	second.verifies(t)
}

// TestReplicaOfARegistry takes over root keys only where the database that they
// belong to allows both sides.
func TestReplicaOfARegistry(t *testing.T) {
	t.Parallel()
	source := newAdminKMS(t, "", registryAuthority)
	env := append(database(t, servers.Shared(t, server.PostgreSQL)), "DSTACK_KMS_CORE_IMAGE_VERIFY=false")
	source.serve(t, exampleDomain, env...)
	info := source.self(t)
	source.mustKmsctl(t, "registry", "tcb", "add", "UpToDate")
	source.mustKmsctl(t, "registry", "image", "add", fmt.Sprintf("%x", info.OSImageHash))
	source.mustKmsctl(t, "registry", "kms", "add", fmt.Sprintf("%x", info.MRAggregated), "--device", "any")

	// onboard starts a replica in the same trust domain and lets it take the keys.
	onboard := func(t *testing.T, env []string) (*kmsDir, *process, answer) {
		t.Helper()
		k := newKMS(t, "", registryAuthority)
		k.TD = source.TD
		k.write(t, "", registryAuthority)
		p := startCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
		p.ready(t, http.DefaultClient, k.URL("http")+"/health")
		return k, p, post(t, k.URL("http")+"/prpc/Onboard.Onboard?json",
			fmt.Sprintf(`{"source_url": "%s/prpc", "domain": "replica.example.com"}`, source.URL("https")))
	}
	t.Run("a database of its own denies", func(t *testing.T) {
		k, p, a := onboard(t, nil)
		if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, "source KMS refused: Boot denied: ") {
			t.Errorf("Onboard = %d %s, want a denial of the source", a.StatusCode, a.body)
		}
		if !gone(t, filepath.Join(k.Certs, "root-ca.key")) {
			t.Error("root keys were written after a denial")
		}
		p.terminate(t)
	})
	t.Run("the database of another KMS", func(t *testing.T) {
		other := newKMS(t, "", devAuthority)
		other.fill(t, exampleDomain)
		p, _ := other.serve(t, exampleDomain)
		p.terminate(t)
		k, _, a := onboard(t, []string{"DSTACK_KMS_CORE_DATABASE_PATH=" + filepath.Join(other.Dir, "db")})
		if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, "do not go with core.database: ") || !strings.Contains(a.body, "belongs to another KMS") {
			t.Errorf("Onboard = %d %s, want a refusal that names the other root", a.StatusCode, a.body)
		}
		if !gone(t, filepath.Join(k.Certs, "root-ca.key")) {
			t.Error("root keys were written after a refusal")
		}
	})
	t.Run("a database that is not there", func(t *testing.T) {
		url := filepath.Join(t.TempDir(), "url")
		if err := os.WriteFile(url, fmt.Appendf(nil, "postgresql://kms:url-canary@127.0.0.1:%d/kms", freePort(t)), 0o600); err != nil {
			t.Fatal(err)
		}
		k, p, a := onboard(t, []string{"DSTACK_KMS_CORE_DATABASE_TYPE=postgresql", "DSTACK_KMS_CORE_DATABASE_URL_FILE=" + url})
		wantRefusal(t, a, "authorization service unreachable")
		if !gone(t, filepath.Join(k.Certs, "root-ca.key")) || strings.Contains(p.stderr.String(), "url-canary") {
			t.Errorf("root keys were written, or the log holds the URL:\n%s", p.stderr)
		}
	})
	t.Run("the database of the source allows", func(t *testing.T) {
		k, p, a := onboard(t, env)
		if a.StatusCode != http.StatusOK {
			t.Fatalf("Onboard = %d %s, want 200", a.StatusCode, a.body)
		}
		post(t, k.URL("http")+"/prpc/Onboard.Finish?json", `{}`)
		if code := p.wait(t, patience); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
		found := false
		for _, r := range source.records(t, "onboard") {
			found = found || r.Fields["domain"] == "replica.example.com" && r.Fields["source_mr_aggregated"] == fmt.Sprintf("%x", info.MRAggregated)
		}
		if !found {
			t.Error("the audit log has no record of the onboarding")
		}
		k.serve(t, "replica.example.com", env...)
	})
	source.verifies(t)
}

// TestThreeReplicasUnderLoad has three processes release from one database at
// once: each key that was given away is recorded once, and the log is one.
func TestThreeReplicasUnderLoad(t *testing.T) {
	t.Parallel()
	const calls, workers = 40, 4
	first := newAdminKMS(t, "", "[core.auth_api]\ntype = \"dev\"\n")
	env := append(database(t, servers.Shared(t, server.PostgreSQL)), "DSTACK_KMS_CORE_IMAGE_VERIFY=false")
	replicas := []*adminKMS{first, first.twin(t, "[core.auth_api]\ntype = \"dev\"\n"), first.twin(t, "[core.auth_api]\ntype = \"dev\"\n")}
	var starting sync.WaitGroup
	for _, k := range replicas { // at once, on an empty database
		starting.Go(func() { k.serve(t, exampleDomain, env...) })
	}
	starting.Wait()
	checkpoint := filepath.Join(t.TempDir(), "checkpoint")
	first.mustKmsctl(t, "audit", "checkpoint", "--dir", first.Certs, "--out", checkpoint)
	var load sync.WaitGroup
	var callers []*caller
	for _, k := range replicas {
		for range workers {
			c := k.caller(t)
			callers = append(callers, c)
			load.Go(func() {
				for range calls {
					c.ask()
				}
			})
		}
	}
	load.Wait()
	first.recorded(t, callers, len(replicas)*workers*calls)
	for _, k := range replicas {
		k.verifies(t, checkpoint)
	}
	if n := len(first.records(t, "bootstrap")); n != 1 {
		t.Errorf("%d records of the bootstrap, want one of the three", n)
	}
}

// caller is a workload with an instance id of its own, which its records have.
type caller struct {
	*kmsDir
	client   *http.Client
	instance string
	// got counts the keys that it was answered with, lost the calls of which it
	// does not know what became.
	got, lost atomic.Int32
}

var callers atomic.Uint32

func (k *kmsDir) caller(t testing.TB) *caller {
	t.Helper()
	n := callers.Add(1)
	id := append(make([]byte, 18), byte(n>>8), byte(n))
	td, err := simtd.Open(simtd.Config{Dir: k.TD, Ephemeral: true, Measurements: simtd.Measurements{InstanceID: id}})
	if err != nil {
		t.Fatal(err)
	}
	c := &caller{kmsDir: k, client: k.workload(t, td), instance: hex.EncodeToString(id)}
	c.client.Timeout = patience
	return c
}

// ask asks for a key.
func (c *caller) ask() {
	resp, err := c.client.Post(c.URL("https")+"/prpc/GetAppKey?json", "application/json", strings.NewReader("{}"))
	if err != nil {
		c.lost.Add(1)
		return
	}
	defer resp.Body.Close()
	var body struct {
		Key string `json:"disk_crypt_key"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != http.StatusOK || body.Key == "" {
		c.lost.Add(1)
		return
	}
	c.got.Add(1)
}

// recorded wants a record for every key that the callers got, and none for calls
// that they did not make; and least keys in all.
func (a *adminKMS) recorded(t testing.TB, callers []*caller, least int) {
	t.Helper()
	known := map[string]int{}
	for _, r := range a.records(t, "app_key") {
		known[r.Fields["instance_id"]]++
	}
	got, lost := 0, 0
	for _, c := range callers {
		hasGot, hasLost := int(c.got.Load()), int(c.lost.Load())
		got, lost = got+hasGot, lost+hasLost
		if n := known[c.instance]; n < hasGot || n > hasGot+hasLost {
			t.Errorf("a caller got %d keys and lost %d answers, and has %d records", hasGot, hasLost, n)
		}
	}
	if got < least {
		t.Errorf("%d keys were released, want %d at least", got, least)
	}
	t.Logf("%d keys released, %d answers lost", got, lost)
}

// TestKilledUnderLoad kills a KMS that releases keys, again and again: none that
// a client got lacks its record.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "", "[core.auth_api]\ntype = \"dev\"\n")
	var callers []*caller
	for range 6 {
		p, _ := k.serve(t, exampleDomain, "DSTACK_KMS_CORE_IMAGE_VERIFY=false")
		before := len(callers)
		stop := make(chan struct{})
		var load sync.WaitGroup
		for range 8 {
			c := k.caller(t)
			callers = append(callers, c)
			load.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						c.ask()
					}
				}
			})
		}
		time.Sleep(300 * time.Millisecond)
		for end, got := time.Now().Add(patience), int32(0); got < 10 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			got = 0
			for _, c := range callers[before:] {
				got += c.got.Load()
			}
		}
		_ = p.Process.Kill()
		<-p.ended
		close(stop)
		load.Wait()
	}
	k.serve(t, exampleDomain)
	k.recorded(t, callers, 60)
	k.verifies(t)
}

// TestDatabaseThatGoesAway stops the database of a KMS: nothing is released
// until it is back, and then everything by itself.
func TestDatabaseThatGoesAway(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "", "[core.auth_api]\ntype = \"dev\"\n")
	s := servers.Own(t, server.PostgreSQL, server.Options{Durable: true})
	p, client := k.serve(t, exampleDomain, append(database(t, s), "DSTACK_KMS_CORE_IMAGE_VERIFY=false")...)
	workload := k.workload(t, k.openTD(t))
	if a := k.appKey(t, workload, "{}"); a.StatusCode != http.StatusOK {
		t.Fatalf("GetAppKey = %d %s, want 200", a.StatusCode, a.body)
	}
	s.Kill()
	var refusals sync.WaitGroup
	for range 4 {
		refusals.Go(func() { wantRefusal(t, k.appKey(t, workload, "{}"), "audit log unavailable: nothing was released") })
	}
	refusals.Wait()
	deadline := time.Now().Add(patience)
	for probe(client, k.URL("https")+"/ready") == nil && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	if a := get(t, client, k.URL("https")+"/ready"); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, "the database does not answer") {
		t.Errorf("GET /ready = %d %s, want 503 and why", a.StatusCode, a.body)
	}
	metaOf(t, client, k.kmsDir) // what is public stays so
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	p.ready(t, client, k.URL("https")+"/ready")
	p.logs(t, "INFO the database answers again")
	if a := k.appKey(t, workload, "{}"); a.StatusCode != http.StatusOK {
		t.Errorf("GetAppKey = %d %s once the database is back, want 200", a.StatusCode, a.body)
	}
	k.verifies(t)
	if strings.Contains(p.stderr.String(), server.Marker) {
		t.Errorf("the log holds the password:\n%s", p.stderr)
	}
}

// TestDatabaseThatIsNotThereAtStart fails with a text, soon.
func TestDatabaseThatIsNotThereAtStart(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	url := filepath.Join(k.Dir, "url")
	if err := os.WriteFile(url, fmt.Appendf(nil, "postgresql://kms:url-canary@127.0.0.1:%d/kms", freePort(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := runCmd(t, command(t, []string{
		"DSTACK_KMS_CORE_DATABASE_TYPE=postgresql", "DSTACK_KMS_CORE_DATABASE_URL_FILE=" + url,
	}, "dstack-kms", "--config", k.Config))
	wantErrorLine(t, code, 1, stderr, "opening the database: opening postgresql database: the database server refused the connection: nothing listens there")
	if strings.Contains(stderr, "url-canary") {
		t.Errorf("the log holds the password:\n%s", stderr)
	}
	// So is what cannot be a URL, before anything is opened.
	code, _, stderr = runCmd(t, command(t, []string{
		"DSTACK_KMS_CORE_DATABASE_TYPE=mysql", "DSTACK_KMS_CORE_DATABASE_URL_FILE=" + url,
	}, "dstack-kms", "--check", "--config", k.Config))
	if last := lastLine(stderr); code != 1 || !strings.HasPrefix(last, "Error: core.database: ") || strings.Contains(stderr, "url-canary") {
		t.Errorf("--check: exit status %d, last line %q, want 1 and what is wrong with core.database", code, last)
	}
}
