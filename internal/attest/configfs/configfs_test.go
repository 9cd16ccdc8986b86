package configfs_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"go.uber.org/goleak"

	"teekms/internal/attest"
	"teekms/internal/attest/configfs"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var reportData = attest.BootstrapReportData([]byte{1}, []byte{2})

// kernel plays configfs-tsm over a software trust domain.
type kernel struct {
	*faketsm.ReportSubsystem
	provider string
	quote    func(inblob [64]byte) ([]byte, error)
}

func newKernel(t testing.TB) (*kernel, *simtd.TD) {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{provider: "tdx_guest\n"}
	k.quote = func(rd [64]byte) ([]byte, error) {
		q, err := td.Quote(rd, simtd.Shape{})
		return append(q, make([]byte, 39)...), err // padding, as hosts leave it
	}
	k.ReportSubsystem = &faketsm.ReportSubsystem{
		Random: rand.Reader,
		MakeEntry: func() *faketsm.ReportEntry {
			return &faketsm.ReportEntry{InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}}}
		},
		CheckInAttr: func(_ *faketsm.ReportEntry, attr string, contents []byte) error {
			if attr != "inblob" || len(contents) != 64 {
				return syscall.EINVAL
			}
			return nil
		},
		ReadAttr: func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
			switch attr {
			case "provider":
				return []byte(k.provider), nil
			case "outblob":
				return k.quote([64]byte(e.InAttrs["inblob"].Value))
			}
			return nil, os.ErrNotExist
		},
	}
	return k, td
}

// faulty lets calls fail as the kernel does, each fault as often as it says.
type faulty struct {
	configfsi.Client
	mu     sync.Mutex
	faults map[string]*fault // by operation and file name
	calls  map[string]int
}

type fault struct {
	times int // -1 for always
	err   error
	do    func() // instead of failing
}

func (f *faulty) fault(op, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := op + " " + filepath.Base(path)
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[key]++
	x := f.faults[key]
	if x == nil || x.times == 0 {
		return nil
	}
	x.times--
	if x.do != nil {
		x.do()
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: x.err}
}

// count returns how often an operation was tried on a file.
func (f *faulty) count(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[key]
}

func (f *faulty) MkdirTemp(dir, pattern string) (string, error) {
	if err := f.fault("mkdir", dir); err != nil {
		return "", err
	}
	return f.Client.MkdirTemp(dir, pattern)
}

func (f *faulty) ReadFile(name string) ([]byte, error) {
	if err := f.fault("read", name); err != nil {
		return nil, err
	}
	return f.Client.ReadFile(name)
}

func (f *faulty) WriteFile(name string, b []byte) error {
	if err := f.fault("write", name); err != nil {
		return err
	}
	return f.Client.WriteFile(name, b)
}

func (f *faulty) RemoveAll(name string) error {
	if err := f.fault("remove", "entry"); err != nil {
		return err
	}
	return f.Client.RemoveAll(name)
}

func noCCEL(t testing.TB) string { return filepath.Join(t.TempDir(), "CCEL") }

func TestAttest(t *testing.T) {
	k, td := newKernel(t)
	ev, err := configfs.New(configfs.Config{Client: k, CCEL: noCCEL(t)}).Attest(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	if ev.EventLog != nil || ev.VMConfig != "" {
		t.Errorf("EventLog = %q, VMConfig = %q, want neither", ev.EventLog, ev.VMConfig)
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := verifier.Verify(t.Context(), ev)
	if err != nil || claims.ReportData != reportData.Bytes() {
		t.Errorf("Verify() = %+v, %v, want report data %x", claims, err, reportData.Bytes())
	}
	if n := len(k.Entries); n != 0 {
		t.Errorf("%d entries are left, want 0", n)
	}
}

func TestAttestTriesAgainWhileTheMachineIsBusy(t *testing.T) {
	for name, f := range map[string]struct {
		key string
		err error
	}{
		"busy mkdir":          {"mkdir report", syscall.EBUSY},
		"interrupted mkdir":   {"mkdir report", syscall.EINTR},
		"busy write":          {"write inblob", syscall.EBUSY},
		"interrupted read":    {"read outblob", syscall.EINTR},
		"timed out read":      {"read outblob", syscall.ETIMEDOUT},
		"busy generation":     {"read generation", syscall.EBUSY},
		"interrupted removal": {"remove entry", syscall.EINTR},
	} {
		t.Run(name, func(t *testing.T) {
			k, _ := newKernel(t)
			c := &faulty{Client: k, faults: map[string]*fault{f.key: {times: 3, err: f.err}}}
			if _, err := configfs.New(configfs.Config{Client: c, CCEL: noCCEL(t)}).Attest(t.Context(), reportData); err != nil {
				t.Errorf("Attest() = %v, want nil", err)
			}
			if got := c.count(f.key); got < 4 {
				t.Errorf("%q was called %d times, want at least 4", f.key, got)
			}
			if n := len(k.Entries); n != 0 {
				t.Errorf("%d entries are left, want 0", n)
			}
		})
	}
}

func TestAttestTriesAgainWhenAnotherProcessWroteToTheEntry(t *testing.T) {
	k, _ := newKernel(t)
	c := &faulty{Client: k}
	c.faults = map[string]*fault{"read outblob": {times: 1, do: func() {
		for name := range k.Entries {
			if err := k.WriteFile(configfsi.TsmPrefix+"/report/"+name+"/inblob", make([]byte, 64)); err != nil {
				t.Error(err)
			}
		}
	}}}
	ev, err := configfs.New(configfs.Config{Client: c, CCEL: noCCEL(t)}).Attest(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	if q, err := tdx.ParseQuote(ev.Quote); err != nil || q.ReportData() != reportData.Bytes() {
		t.Errorf("report data = %x, %v, want %x", q.ReportData(), err, reportData.Bytes())
	}
	if got := c.count("read outblob"); got != 2 {
		t.Errorf("outblob was read %d times, want 2", got)
	}
}

func TestAttestRefuses(t *testing.T) {
	k, td := newKernel(t)
	foreign := func([64]byte) ([]byte, error) { return td.Quote([64]byte{9}, simtd.Shape{}) }
	tests := []struct {
		name     string
		faults   map[string]*fault
		provider string
		quote    func([64]byte) ([]byte, error)
		absent   bool
		want     string
	}{
		{"configfs not mounted", map[string]*fault{"mkdir report": {times: -1, err: syscall.ENOENT}}, "", nil, true, "no attester found"},
		{"no TEE behind it", map[string]*fault{"mkdir report": {times: -1, err: syscall.ENXIO}}, "", nil, true, "no attester found"},
		{"no permission", map[string]*fault{"mkdir report": {times: -1, err: syscall.EACCES}}, "", nil, false, "making an entry: mkdir /sys/kernel/config/tsm/report: permission denied"},
		{"write fails", map[string]*fault{"write inblob": {times: -1, err: syscall.EINVAL}}, "", nil, false, "writing inblob"},
		{"host fails", map[string]*fault{"read outblob": {times: -1, err: syscall.EIO}}, "", nil, false, "reading outblob"},
		{"no provider", map[string]*fault{"read provider": {times: -1, err: syscall.EIO}}, "", nil, false, "reading provider"},
		{"no generation", map[string]*fault{"read generation": {times: -1, err: syscall.EIO}}, "", nil, false, "reading generation"},
		{"entry stays busy", map[string]*fault{"remove entry": {times: -1, err: syscall.EBUSY}}, "", nil, false, "removing the entry"},
		{"entry stays", map[string]*fault{"remove entry": {times: 1, err: syscall.EPERM}}, "", nil, false, "removing the entry"},
		{"another TEE", nil, "sev_guest\n", nil, false, `provider is "sev_guest", want "tdx_guest"`},
		{"quote over other report data", nil, "", foreign, false, "the quote is over other report data than asked for"},
		{"empty quote", nil, "", func([64]byte) ([]byte, error) { return nil, nil }, false, "quoting through configfs: header"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mine, _ := newKernel(t)
			mine.quote = k.quote
			if tt.provider != "" {
				mine.provider = tt.provider
			}
			if tt.quote != nil {
				mine.quote = tt.quote
			}
			c := &faulty{Client: mine, faults: tt.faults}
			_, err := configfs.New(configfs.Config{Client: c, CCEL: noCCEL(t)}).Attest(t.Context(), reportData)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Attest() = %v, want error %q", err, tt.want)
			}
			if got := errors.Is(err, attest.ErrNoAttester); got != tt.absent {
				t.Errorf("errors.Is(%v, ErrNoAttester) = %t, want %t", err, got, tt.absent)
			}
			if n := len(mine.Entries); n != 0 && !strings.HasPrefix(tt.name, "entry stays") {
				t.Errorf("%d entries are left, want 0", n)
			}
		})
	}
}

func TestAttestEndsAtItsDeadline(t *testing.T) {
	k, _ := newKernel(t)
	path := noCCEL(t)
	t.Run("a machine that stays busy", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := &faulty{Client: k, faults: map[string]*fault{"mkdir report": {times: -1, err: syscall.EBUSY}}}
			begin := time.Now()
			_, err := configfs.New(configfs.Config{Client: c, CCEL: path, Timeout: 10 * time.Second}).Attest(t.Context(), reportData)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Attest() = %v, want %v", err, context.DeadlineExceeded)
			}
			if got := time.Since(begin); got != 10*time.Second {
				t.Errorf("it took %v, want 10s", got)
			}
			synctest.Wait()
			// Pauses double from 5 ms to 500 ms.
			if got := c.count("mkdir report"); got < 20 || got > 30 {
				t.Errorf("%d tries in 10 seconds, want about 26", got)
			}
		})
	})
	t.Run("a read that the kernel does not end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			c := &faulty{Client: k}
			slow := k.quote
			k.quote = func(rd [64]byte) ([]byte, error) {
				<-release
				return slow(rd)
			}
			defer func() { k.quote = slow }()
			a := configfs.New(configfs.Config{Client: c, CCEL: path, Timeout: time.Second})
			if _, err := a.Attest(t.Context(), reportData); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for the kernel") {
				t.Errorf("Attest() = %v, want %v waiting for the kernel", err, context.DeadlineExceeded)
			}
			if _, err := a.Attest(t.Context(), reportData); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for another quote") {
				t.Errorf("second Attest() = %v, want %v waiting for another quote", err, context.DeadlineExceeded)
			}
			if got := c.count("mkdir report"); got != 1 {
				t.Errorf("%d entries were made, want 1", got)
			}
			close(release)
			synctest.Wait()
			if n := len(k.Entries); n != 0 {
				t.Errorf("%d entries are left, want 0", n)
			}
			if _, err := a.Attest(t.Context(), reportData); err != nil {
				t.Errorf("Attest() afterwards = %v, want nil", err)
			}
		})
	})
}

func TestZeroConfigIsForTheRealKernel(t *testing.T) {
	_, err := configfs.New(configfs.Config{}).Attest(t.Context(), reportData)
	_, absent := os.Stat(configfsi.TsmPrefix + "/report")
	if errors.Is(err, attest.ErrNoAttester) != errors.Is(absent, fs.ErrNotExist) {
		t.Errorf("Attest() = %v where configfs-tsm is %v, want %v where it is not there", err, absent, attest.ErrNoAttester)
	}
}

func TestConcurrentCallersGetTheirOwnQuotes(t *testing.T) {
	k, _ := newKernel(t)
	a := configfs.New(configfs.Config{Client: k, CCEL: noCCEL(t)})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rd := attest.RATLSReportData(fmt.Append(nil, i))
			ev, err := a.Attest(t.Context(), rd)
			if err != nil {
				t.Error(err)
				return
			}
			if q, err := tdx.ParseQuote(ev.Quote); err != nil || q.ReportData() != rd.Bytes() {
				t.Errorf("report data = %x, %v, want %x", q.ReportData(), err, rd.Bytes())
			}
		})
	}
	wg.Wait()
}
