package storagetest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/storagetest/server"
)

// How often what is killed. Two client processes work at any time.
const (
	lanes          = 2
	killsOfClients = 12 // in each lane, as is
	killsOfFiles   = 30 // what opens a file, which takes less time
	killsOfServers = 6
)

// Kill kills client processes in the middle of their commits, and the server
// where there is one, and looks for what they were told is durable. It ends with
// a line of the log that counts.
func Kill(t *testing.T, b Backend) {
	s := suite{Backend: b, passed: new(atomic.Int64)}
	srv, c := b.Own(t, server.Options{Durable: true})
	// The database is there before two make it: that they can is another case.
	s.open(t, c)
	acknowledged := &ledger{batches: make(map[uint64]uint32)}

	kills := killsOfClients
	if srv == nil {
		kills = killsOfFiles
	}
	var wg sync.WaitGroup
	for range lanes {
		wg.Go(func() {
			for i := range kills {
				killClient(t, c, acknowledged, i)
			}
		})
	}
	wg.Wait()
	clients := lanes * kills
	servers := 0
	if srv != nil && !t.Failed() {
		servers = killsOfServers
		killServer(t, srv, c, acknowledged)
		clients += lanes
	}
	if t.Failed() {
		return
	}
	rows, batches := acknowledged.check(t, s.open(t, c))
	t.Logf("killed: %s: %d clients and %d servers; %d batches were acknowledged, %d are in the log with %d rows: 0 lost, 0 doubled, 0 torn",
		b.Name, clients, servers, acknowledged.total(), batches, rows)
}

// ledger is how many batches of each run were acknowledged.
type ledger struct {
	mu      sync.Mutex // guards batches
	batches map[uint64]uint32
}

func (l *ledger) set(run uint64, batches uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches[run] = batches
}

func (l *ledger) total() (sum int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.batches {
		sum += int(n)
	}
	return sum
}

// process is a client process.
type process struct {
	run   uint64
	cmd   *exec.Cmd
	input io.Closer
	// acknowledged is the number of batches.
	acknowledged atomic.Uint32
	ended        chan struct{} // closed when all it wrote is read
	failure      string        // valid after ended
}

// startClient starts a client process on the database.
func startClient(c storage.Config) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{run: rand.Uint64(), ended: make(chan struct{})} //nolint:gosec // a name, not a secret
	p.cmd = exec.Command(self)                                    //nolint:noctx // it is killed, that is the point
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), clientVariable+"=1"), os.Stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	task, err := json.Marshal(assignment{
		Type: c.Type, Path: c.Path, URL: string(c.URL.Bytes()), MasterPassword: string(c.MasterPassword.Bytes()), Label: c.Label, Run: p.run,
	})
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.input = stdin
	go p.read(stdout)
	_, err = stdin.Write(append(task, '\n'))
	return p, err
}

// read counts what is acknowledged.
func (p *process) read(stdout io.Reader) {
	defer close(p.ended)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		n, err := strconv.ParseUint(lines.Text(), 10, 32)
		if err != nil || uint32(n) != p.acknowledged.Load() {
			p.failure = lines.Text()
			return
		}
		p.acknowledged.Store(uint32(n) + 1)
	}
}

// kill ends the process with SIGKILL.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.ended
	// It was killed: that it did not succeed is no news.
	_ = p.cmd.Wait()
	_ = p.input.Close()
	if p.failure != "" {
		return fmt.Errorf("the client says %q", p.failure)
	}
	return err
}

// reach waits until the process has so many acknowledgements.
func (p *process) reach(batches uint32) error {
	for deadline := time.After(settleTimeout); p.acknowledged.Load() < batches; {
		select {
		case <-p.ended:
			return fmt.Errorf("the client ended: %q", p.failure)
		case <-deadline:
			return fmt.Errorf("no acknowledgement in %v", settleTimeout)
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// killClient starts a client and kills it: mostly while it commits, sometimes
// while it opens.
func killClient(t *testing.T, c storage.Config, acknowledged *ledger, round int) {
	p, err := startClient(c)
	if err != nil {
		t.Error(err)
		return
	}
	if round%4 != 0 {
		if err := p.reach(1); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(time.Duration(rand.IntN(int(200 * time.Millisecond)))) //nolint:gosec // a moment, not a secret
	if err := p.kill(); err != nil {
		t.Error(err)
	}
	acknowledged.set(p.run, p.acknowledged.Load())
}

// killServer kills the server under clients that are left alone, and sees that
// they go on.
func killServer(t *testing.T, srv *server.Server, c storage.Config, acknowledged *ledger) {
	var clients []*process
	for range lanes {
		p, err := startClient(c)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, p)
	}
	goOn := func() {
		for _, p := range clients {
			if err := p.reach(p.acknowledged.Load() + 2); err != nil {
				t.Errorf("%v\nthe server's log: %s", err, srv.Log())
			}
		}
	}
	goOn()
	for range killsOfServers {
		time.Sleep(time.Duration(rand.IntN(int(300 * time.Millisecond)))) //nolint:gosec // a moment, not a secret
		srv.Kill()
		if err := srv.Start(); err != nil {
			t.Error(err)
		}
		goOn()
	}
	for _, p := range clients {
		if err := p.kill(); err != nil {
			t.Error(err)
		}
		acknowledged.set(p.run, p.acknowledged.Load())
	}
}

// check compares the log with what was acknowledged: of each run the batches are
// there from the first on, each whole and with its rule, none missing, and one
// more at most than was acknowledged.
func (l *ledger) check(t *testing.T, db storage.DB) (rows, batches int) {
	t.Helper()
	all := allRows(t, db)
	next := make(map[uint64]uint32)
	for i := 0; i < len(all); {
		run, n := binary.BigEndian.Uint64(all[i].EventID[:]), binary.BigEndian.Uint32(all[i].EventID[8:])
		if n != next[run] {
			t.Fatalf("row %d is of batch %d of its run, want batch %d", i, n, next[run])
		}
		want, _ := numbered(run, n)
		for j, r := range want {
			if i+j >= len(all) || all[i+j].EventID != r.id || !bytes.Equal(all[i+j].Body, r.body) {
				t.Fatalf("batch %d of a run is torn at row %d", n, i+j)
			}
		}
		i += len(want)
		next[run]++
		batches++
	}
	rules := make(map[string]bool)
	for _, e := range list(t, db, registry.Query{Kind: registry.App}) {
		rules[e.Value] = true
	}
	for run, n := range l.batches {
		if next[run] < n || next[run] > n+1 {
			t.Errorf("%d batches of a run are in the log, %d were acknowledged", next[run], n)
		}
		for i := range next[run] {
			if !rules[batchName(run, i)] {
				t.Errorf("the rule of batch %d of a run is not there", i)
			}
		}
	}
	if len(rules) != batches {
		t.Errorf("%d rules are there, want one of each of %d batches", len(rules), batches)
	}
	if len(next) > len(l.batches) || batches == 0 {
		t.Errorf("the log has %d batches of %d runs, of %d runs that were started", batches, len(next), len(l.batches))
	}
	return len(all), batches
}
