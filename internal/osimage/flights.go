package osimage

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// failureFor is how long a failed download is remembered, so that callers
	// cannot have it tried over and over.
	failureFor = 30 * time.Second
	// maxAnswers bounds what is remembered, failures and images alike: a few
	// hundred bytes each.
	maxAnswers = 256
	// maxFlights bounds how many images are downloaded or measured at a time,
	// and so the memory that their kernels take.
	maxFlights = 2
)

// flights make sure that an image is fetched once however many ask for it, and
// remember what came of it. A flight does not end with the caller who started it.
type flights struct {
	fetch   func(ctx context.Context, hash imageHash) (*image, error)
	timeout time.Duration
	now     func() time.Time

	slots chan struct{}
	base  context.Context //nolint:containedctx // The life of the flights, ended by close.
	end   context.CancelFunc
	group sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	answers map[imageHash]*flight
}

type flight struct {
	done  chan struct{} // closed when the rest is set
	image *image
	err   error
	at    time.Time
}

func (f *flight) landed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

func newFlights(timeout time.Duration, now func() time.Time, fetch func(context.Context, imageHash) (*image, error)) *flights {
	base, end := context.WithCancel(context.Background())
	return &flights{
		fetch: fetch, timeout: timeout, now: now, base: base, end: end,
		slots: make(chan struct{}, maxFlights), answers: map[imageHash]*flight{},
	}
}

// image waits for the image as long as ctx allows.
func (fs *flights) image(ctx context.Context, hash imageHash) (*image, error) {
	f := fs.join(hash) //nolint:contextcheck // A flight outlives the caller who starts it.
	if f == nil {
		return nil, errors.New("too many images under way, or closed")
	}
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join returns the flight for an image, started now if there is none; nil after
// close, and where there are too many.
func (fs *flights) join(hash imageHash) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return nil
	}
	if f := fs.answers[hash]; f != nil && !fs.expired(f) {
		return f
	}
	if !fs.makeRoom() {
		return nil
	}
	f := &flight{done: make(chan struct{})}
	fs.answers[hash] = f
	fs.group.Go(func() { fs.fly(f, hash) })
	return f
}

func (fs *flights) fly(f *flight, hash imageHash) {
	defer close(f.done)
	defer func() { f.at = fs.now() }()
	f.err = fs.alone(fs.base, func() (err error) {
		ctx, cancel := context.WithTimeout(fs.base, fs.timeout)
		defer cancel()
		f.image, err = fs.fetch(ctx, hash)
		return err
	})
}

// alone calls f when it is its turn among the flights.
func (fs *flights) alone(ctx context.Context, f func() error) error {
	select {
	case fs.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-fs.slots }()
	return f()
}

func (fs *flights) expired(f *flight) bool {
	return f.landed() && f.err != nil && fs.now().Sub(f.at) >= failureFor
}

// makeRoom forgets an answer, an expired one if there is any, where there are
// too many. It says whether there is room.
func (fs *flights) makeRoom() bool {
	if len(fs.answers) < maxAnswers {
		return true
	}
	var victim *imageHash
	for hash, f := range fs.answers {
		if f.landed() && (victim == nil || fs.expired(f)) {
			victim = &hash
		}
	}
	if victim == nil {
		return false
	}
	delete(fs.answers, *victim)
	return true
}

// forget drops the answer for an image, or all. Flights under way go on for
// those who wait for them.
func (fs *flights) forget(hash *imageHash) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if hash == nil {
		clear(fs.answers)
		return
	}
	delete(fs.answers, *hash)
}

// close ends the flights and waits for them.
func (fs *flights) close() {
	fs.mu.Lock()
	fs.closed = true
	fs.mu.Unlock()
	fs.end()
	fs.group.Wait()
}
