package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"
)

// How long an answer of the database is good, and how long one may take.
const (
	pingLifetime = time.Second
	pingTimeout  = 2 * time.Second
)

// errNoDatabase is what load balancers are told; why, is in the log.
var errNoDatabase = errors.New("the database does not answer, or is not as it was: nothing is released")

// pinger knows whether the database answers. However often it is asked, the
// database is asked once at a time and once in a lifetime of an answer.
type pinger struct {
	ping func(context.Context) error
	log  *zap.Logger

	mu sync.Mutex
	// asked is when the last answer came, failed whether it was none; guarded by
	// mu.
	asked  time.Time
	failed bool
}

// check returns nil while the database answers.
func (p *pinger) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked.IsZero() || time.Since(p.asked) > pingLifetime {
		ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
		defer cancel()
		err := p.ping(ctx)
		switch {
		case err != nil && !p.failed:
			p.log.Error("the database does not answer", zap.NamedError("err", err))
		case err == nil && p.failed:
			p.log.Info("the database answers again")
		}
		p.asked, p.failed = time.Now(), err != nil
	}
	if p.failed {
		return errNoDatabase
	}
	return nil
}
