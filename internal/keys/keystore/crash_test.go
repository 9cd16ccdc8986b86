package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys/keystore"
)

const crashDir = "/etc/kms/certs"

// scenario is one writing operation on the key directory.
type scenario struct {
	name  string
	start *durabletest.Disk
	// run is the operation of a process that begins on the disk. announced says
	// that it reported success.
	run func(fsys durable.FS) (announced bool, err error)
	// check judges what a later process finds. announced is as run said.
	check func(d *durabletest.Disk, announced bool) error
	// clean judges the directory after run failed without a crash and says that
	// it is as it was.
	clean func(d *durabletest.Disk) error
	// undoing asks for crashes while a failure is undone.
	undoing bool
	// sealers are those that the directory may be sealed to; without them it is
	// plain.
	sealers []keystore.Sealer
	// traces tells disks from one another whose files are equal, by what was
	// removed from them.
	traces func(d *durabletest.Disk) string
	// lean asks for fewer outcomes and errors, where keys made at random make
	// every disk different.
	lean bool
}

// recover is what a later process does first. With seals it is the recovery
// alone, without the opening that follows and writes nothing.
func (sc scenario) recover(fsys durable.FS) error {
	if len(sc.sealers) > 0 {
		_, err := keystore.ReadPrivate(context.Background(), crashDir, fsys)
		return err
	}
	_, err := openSealed(fsys, nil)
	return err
}

func (sc scenario) key(d *durabletest.Disk, announced bool) string {
	key := fmt.Sprint(announced, d.Fingerprint())
	if sc.traces != nil {
		key += sc.traces(d)
	}
	return key
}

func crashFaults() []durabletest.Fault {
	return []durabletest.Fault{durabletest.CrashBefore, durabletest.CrashAfter, durabletest.CrashTorn}
}

func failures() []durabletest.Plan {
	var plans []durabletest.Plan
	for _, f := range []durabletest.Fault{durabletest.FailBefore, durabletest.FailAfter, durabletest.FailTorn, durabletest.FailOn} {
		for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS} {
			plans = append(plans, durabletest.Plan{Fault: f, Err: errno})
		}
	}
	return plans
}

// enumerate lets every fault happen at every call of the scenario, and after
// each looks at what the next process finds: on the machine as it is, and after
// a crash with every outcome. Equal disks are judged once.
func (sc scenario) enumerate(t *testing.T, count *tally) {
	dry := sc.start.Clone().FS(durabletest.Plan{})
	if announced, err := sc.run(dry); !announced {
		t.Fatalf("without a fault: %v", err)
	}
	outcomes, faults, failures := durabletest.Outcomes(6), crashFaults(), failures()
	if sc.lean {
		outcomes, faults = durabletest.Outcomes(1), faults[1:] // before a call is after the one before it
		failures = slices.DeleteFunc(failures, func(p durabletest.Plan) bool {
			return errors.Is(p.Err, syscall.EROFS) || (p.Fault == durabletest.FailBefore) != errors.Is(p.Err, syscall.ENOSPC)
		})
	}
	j := judge{sc: sc, count: count, seen: map[string]error{}, recovered: map[string]bool{}}
	for step := range len(dry.Trace()) {
		at := fmt.Sprintf("%d (%s)", step+1, dry.Trace()[step])
		for _, fault := range faults {
			d := sc.start.Clone()
			announced, _ := sc.run(d.FS(durabletest.Plan{Step: step + 1, Fault: fault}))
			for _, o := range outcomes {
				j.judge(t, d.Crash(o), announced, fmt.Sprintf("%s %s, %s", fault, at, o.Name))
				count.add("crashes")
			}
		}
		for _, p := range failures {
			p.Step = step + 1
			d := sc.start.Clone()
			announced, err := sc.run(d.FS(p))
			what := fmt.Sprintf("%s %s with %v", p.Fault, at, p.Err)
			undone := !announced && err != nil && !strings.Contains(err.Error(), "undoing it failed too")
			if undone && sc.clean != nil {
				if err := sc.clean(d); err != nil {
					t.Errorf("%s: %s: the operation failed, then: %v", sc.name, what, err)
				}
				count.add("failures that left nothing behind")
			}
			for _, o := range durabletest.Outcomes(2) {
				after := d.Crash(o)
				j.judge(t, after, announced, what+", then crash, "+o.Name)
				if undone && sc.clean != nil {
					if err := sc.clean(after); err != nil {
						t.Errorf("%s: %s: undone, then crash, %s: %v", sc.name, what, o.Name, err)
					}
				}
				count.add("failures with %v", p.Err)
			}
		}
		if sc.undoing {
			sc.crashWhileUndoing(t, j, step, at)
			sc.dieThenCrash(t, j, step, at)
		}
	}
	count.add("scenarios")
}

// crashWhileUndoing lets a call fail and crashes at each call after it.
func (sc scenario) crashWhileUndoing(t *testing.T, j judge, step int, at string) {
	outcomes := []durabletest.Outcome{durabletest.Kept(), durabletest.Lost(), durabletest.Random(1), durabletest.Random(2), durabletest.Random(3), durabletest.Random(4)}
	for _, fault := range []durabletest.Fault{durabletest.FailBefore, durabletest.FailAfter} {
		for later := step + 2; ; later++ {
			d := sc.start.Clone()
			fsys := d.FS(durabletest.Plan{Step: step + 1, Fault: fault, Err: syscall.EIO, CrashAt: later})
			announced, _ := sc.run(fsys)
			if !fsys.Crashed() {
				break
			}
			for _, o := range outcomes {
				j.judge(t, d.Crash(o), announced, fmt.Sprintf("%s %s, then crash after call %d, %s", fault, at, later, o.Name))
				j.count.add("crashes while a failure is undone")
			}
		}
	}
}

// dieThenCrash ends the process alone, so that the next one recovers from what is
// in the cache and not on the disk, and crashes the machine at each call of that
// recovery and after it.
func (sc scenario) dieThenCrash(t *testing.T, j judge, step int, at string) {
	for later := 1; ; later++ {
		d := sc.start.Clone()
		announced, _ := sc.run(d.FS(durabletest.Plan{Step: step + 1, Fault: durabletest.CrashAfter}))
		second := d.FS(durabletest.Plan{Step: later, Fault: durabletest.CrashAfter})
		_ = sc.recover(second) // the error is the crash
		if calls := second.Trace(); second.Crashed() && strings.HasPrefix(calls[len(calls)-1], "read") {
			continue // as after the call before it
		}
		for _, o := range []durabletest.Outcome{durabletest.Lost(), durabletest.Random(uint64(later))} {
			j.judge(t, d.Crash(o), announced, fmt.Sprintf("the process dies after %s, the machine crashes at call %d of recovery, %s", at, later, o.Name))
			j.count.add("crashes after a dead process")
		}
		if !second.Crashed() {
			return
		}
	}
}

type judge struct {
	sc    scenario
	count *tally
	// seen holds the judgments of the disks seen so far, recovered the kinds of
	// disks whose recovery was crashed.
	seen      map[string]error
	recovered map[string]bool
}

func (j *judge) judge(t *testing.T, d *durabletest.Disk, announced bool, what string) {
	t.Helper()
	key := j.sc.key(d, announced)
	err, ok := j.seen[key]
	if !ok {
		err = j.sc.check(d, announced)
		j.seen[key] = err
		j.count.add("different disks")
		if k := j.sc.kind(d, announced); err == nil && !j.recovered[k] {
			j.recovered[k] = true
			j.again(t, d, announced, what)
		}
	}
	if err != nil {
		t.Errorf("%s: %s: %v", j.sc.name, what, err)
	}
}

// kind is equal for disks with the same files in the same stages of being
// written: what recovery does depends on nothing else, while keys made at random
// make every disk different.
func (sc scenario) kind(d *durabletest.Disk, announced bool) string {
	var b strings.Builder
	files, before := d.Files(crashDir), sc.start.Files(crashDir)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		state := "whole"
		switch text := files[name]; {
		case text == "":
			state = "empty"
		case strings.Trim(text, "\x00") == "":
			state = "zeros"
		case strings.HasPrefix(text, "-") && !strings.HasSuffix(text, "-----\n"), strings.HasPrefix(text, "teekms") && !strings.HasSuffix(text, "\n"):
			state = "torn"
		case strings.HasPrefix(text, "age-"):
			state = fmt.Sprint(len(text)) // torn ones are shorter
		}
		if name := strings.TrimSuffix(strings.TrimPrefix(name, ".stage/"), ".old"); len(sc.sealers) > 0 && before[name] != "" && files[name] == before[name] {
			state += " as at the start"
		}
		fmt.Fprintln(&b, name, state)
	}
	if sc.traces != nil {
		b.WriteString(sc.traces(d))
	}
	return fmt.Sprint(announced, b.String())
}

// again crashes the process that recovers, at every call, and looks what the one
// after it finds. Where there are seals, every call fails too.
func (j *judge) again(t *testing.T, d *durabletest.Disk, announced bool, what string) {
	t.Helper()
	dry := d.Clone().FS(durabletest.Plan{})
	if err := j.sc.recover(dry); err != nil {
		t.Errorf("%s: %s: Open = %v, want nil", j.sc.name, what, err)
		return
	}
	for step, call := range dry.Trace() {
		if strings.HasPrefix(call, "read") || strings.HasPrefix(call, "stat") || len(j.sc.sealers) > 0 && strings.HasPrefix(call, "lock") {
			continue // as after the call before it
		}
		plans := []durabletest.Plan{{Fault: durabletest.CrashAfter}}
		if strings.HasPrefix(call, "overwrite") {
			plans = append(plans, durabletest.Plan{Fault: durabletest.CrashTorn})
		}
		if len(j.sc.sealers) > 0 {
			plans = append(plans, durabletest.Plan{Fault: durabletest.FailBefore, Err: syscall.EIO}, durabletest.Plan{Fault: durabletest.FailAfter, Err: syscall.ENOSPC})
		}
		for _, p := range plans {
			p.Step = step + 1
			second := d.Clone()
			err := j.sc.recover(second.FS(p))
			if p.Fault.Crashes() {
				j.count.add("crashes of recovery")
			} else {
				j.count.add("failures of recovery")
			}
			outcomes := []durabletest.Outcome{durabletest.Lost(), durabletest.Random(uint64(step))}
			if !p.Fault.Crashes() {
				outcomes = outcomes[:1]
			}
			for _, o := range outcomes {
				after := second.Crash(o)
				key := j.sc.key(after, announced)
				err2, ok := j.seen[key]
				if !ok {
					err2 = j.sc.check(after, announced)
					j.seen[key] = err2
					j.count.add("different disks")
				}
				if err2 != nil {
					t.Errorf("%s: %s; then %v of recovery (%v) at %s, %s: %v", j.sc.name, what, p.Fault, err, call, o.Name, err2)
				}
			}
		}
	}
}

// onlyOurs says that the directory has the eight files with their modes and
// nothing else.
func onlyOurs(d *durabletest.Disk, allowed ...string) error {
	want := theEight()
	for name := range d.Files(crashDir) {
		mode, ok := want[name]
		switch {
		case slices.Contains(allowed, name):
			continue
		case !ok:
			return fmt.Errorf("%s is left in the directory", name)
		case d.Mode(crashDir+"/"+name) != mode:
			return fmt.Errorf("mode of %s = %o, want %o", name, d.Mode(crashDir+"/"+name), mode)
		}
	}
	return nil
}

func isEmpty(d *durabletest.Disk) error {
	if left := d.Files(crashDir); len(left) > 0 {
		return fmt.Errorf("left behind: %v", slices.Sorted(maps.Keys(left)))
	}
	return nil
}

// bootstrap is a scenario that fills a directory.
func bootstrap(t *testing.T, name string, start *durabletest.Disk, b *keystore.Bundle, count *tally, sealers ...keystore.Sealer) scenario {
	other := newBundle(t)
	var sealer keystore.Sealer
	if len(sealers) > 0 {
		sealer = sealers[0]
	}
	secret := secretsOf(keystore.PlainFiles(b))
	return scenario{
		name:    name,
		start:   start,
		sealers: sealers,
		run: func(fsys durable.FS) (bool, error) {
			s, err := openSealed(fsys, sealer)
			if err != nil {
				return false, err
			}
			err = s.Commit(context.Background(), b)
			return err == nil, err
		},
		check: func(d *durabletest.Disk, announced bool) error {
			d = d.Clone()
			if found := secret.in(d.Contents()); sealer != nil && len(found) > 0 {
				return fmt.Errorf("in the clear on the disk: %v", found)
			}
			s, err := openSealed(d.FS(durabletest.Plan{}), sealer)
			switch {
			case err != nil:
				return fmt.Errorf("open = %w, want empty or complete", err)
			case s.Complete():
				count.add("found complete")
				return completeWith(s, d, b)
			case announced:
				return fmt.Errorf("found empty, want the announced keys")
			}
			count.add("found empty")
			if err := isEmpty(d); err != nil {
				return err
			}
			// An empty directory can be filled.
			if err := s.Commit(context.Background(), other); err != nil {
				return fmt.Errorf("commit to the empty directory = %w, want nil", err)
			}
			return completeWith(s, d, other)
		},
		clean: isEmpty,
	}
}

// completeWith says that store and disk have exactly this bundle.
func completeWith(s *keystore.Store, d *durabletest.Disk, b *keystore.Bundle) error {
	if !s.Roots().Equal(b.Roots()) {
		return fmt.Errorf("complete with other root keys")
	}
	if (s.Info() == nil) != (b.Info() == nil) || s.Info() != nil && string(s.Info().Quote) != string(b.Info().Quote) {
		return fmt.Errorf("complete with another record")
	}
	want := len(theEight())
	if b.Info() == nil {
		want--
	}
	if got := len(d.Files(crashDir)); got != want {
		return fmt.Errorf("%d files, want %d", got, want)
	}
	return onlyOurs(d)
}

func TestNothingHalfDone(t *testing.T) {
	var count tally
	empty := durabletest.NewDisk(crashDir)

	t.Run("bootstrap", func(t *testing.T) {
		t.Parallel()
		sc := bootstrap(t, "bootstrap", empty, newBundle(t), &count)
		sc.undoing = true
		sc.enumerate(t, &count)
	})
	t.Run("auto-bootstrap without a quote into a missing directory", func(t *testing.T) {
		t.Parallel()
		roots := newRoots(t)
		info := &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}
		b, err := keystore.NewBundle(roots, testDomain, info, clock())
		if err != nil {
			t.Fatal(err)
		}
		bootstrap(t, "auto-bootstrap", durabletest.NewDisk("/etc"), b, &count).enumerate(t, &count)
	})
	t.Run("replica without a record", func(t *testing.T) {
		t.Parallel()
		b, err := keystore.NewBundle(newRoots(t), testDomain, nil, clock())
		if err != nil {
			t.Fatal(err)
		}
		bootstrap(t, "replica", empty, b, &count).enumerate(t, &count)
	})
	t.Run("adoption", func(t *testing.T) {
		t.Parallel()
		adoption(t, &count).enumerate(t, &count)
	})
	t.Run("renewal", func(t *testing.T) {
		t.Parallel()
		renewal(t, &count).enumerate(t, &count)
	})
	sealedScenarios(t, &count)
	t.Cleanup(func() {
		count.floor(t, map[string]int{
			"scenarios": 11, "crashes": 10000, "crashes of recovery": 10000, "crashes while a failure is undone": 5000, "crashes after a dead process": 2000, "different disks": 1000,
			"failures with input/output error": 5000, "failures with no space left on device": 5000,
			"failures with read-only file system": 5000, "failures that left nothing behind": 500,
			"found empty": 50, "found complete": 50,
		})
	})
}

// adoption opens the directory of another KMS that lacks its certificates and
// its temporary CA, and whose keys others may read.
func adoption(t *testing.T, count *tally) scenario {
	start, b := filledDisk(t, crashDir)
	before := start.Files(crashDir)
	for _, name := range []string{"rpc.crt", "tmp-ca.crt", "tmp-ca.key", "bootstrap-info.json"} {
		start.Delete(crashDir + "/" + name)
	}
	start.Put(crashDir+"/root-ca.crt", nil, 0o644) // torn by a crash of the other KMS
	start.Put(crashDir+"/rpc-domain", []byte("other.example.com"), 0o644)
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key"} {
		start.Put(crashDir+"/"+name, []byte(before[name]), 0o644)
	}
	keep := []string{"root-ca.key", "root-k256.key", "rpc.key", "rpc-domain"}
	kept := func(d *durabletest.Disk) error {
		now := d.Files(crashDir)
		for _, name := range keep {
			want := before[name]
			if name == "rpc-domain" {
				want = "other.example.com"
			}
			if now[name] != want {
				return fmt.Errorf("%s has changed", name)
			}
		}
		return nil
	}
	return scenario{
		name:  "adoption",
		start: start,
		run: func(fsys durable.FS) (bool, error) {
			_, err := keystore.Open(context.Background(), keystore.Config{Dir: crashDir, FS: fsys, Now: clock})
			return err == nil, err
		},
		check: func(d *durabletest.Disk, _ bool) error {
			d = d.Clone()
			if err := kept(d); err != nil {
				return err
			}
			s, err := keystore.Open(context.Background(), keystore.Config{Dir: crashDir, FS: d.FS(durabletest.Plan{}), Now: clock})
			if err != nil {
				return fmt.Errorf("open = %w, want complete", err)
			}
			count.add("adopted")
			if !s.Complete() || !s.Roots().Equal(b.Roots()) || s.Info() != nil || s.Domain() != "other.example.com" {
				return fmt.Errorf("complete = %v, domain = %q, want the adopted keys and domain, no record", s.Complete(), s.Domain())
			}
			if got, want := len(d.Files(crashDir)), 8; got != want {
				return fmt.Errorf("%d files, want %d", got, want)
			}
			if err := kept(d); err != nil {
				return err
			}
			return onlyOurs(d, "rpc-domain")
		},
	}
}

// renewal replaces the RPC certificate.
func renewal(t *testing.T, count *tally) scenario {
	start, b := filledDisk(t, crashDir)
	before := start.Files(crashDir)
	return scenario{
		name:  "renewal",
		start: start,
		run: func(fsys durable.FS) (bool, error) {
			s, err := keystore.Open(context.Background(), keystore.Config{Dir: crashDir, FS: fsys, Now: clock})
			if err != nil {
				return false, err
			}
			_, err = s.RenewRPC(context.Background())
			return err == nil, err
		},
		check: func(d *durabletest.Disk, _ bool) error {
			d = d.Clone()
			s, err := keystore.Open(context.Background(), keystore.Config{Dir: crashDir, FS: d.FS(durabletest.Plan{}), Now: clock})
			if err != nil {
				return fmt.Errorf("open = %w, want complete", err)
			}
			now := d.Files(crashDir)
			for name := range before {
				if name != "rpc.crt" && now[name] != before[name] {
					return fmt.Errorf("%s has changed", name)
				}
			}
			if now["rpc.crt"] == before["rpc.crt"] {
				count.add("found the old RPC certificate")
			} else {
				count.add("found the new RPC certificate")
			}
			return completeWith(s, d, b)
		},
	}
}
