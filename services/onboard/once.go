package onboard

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
)

// job is one way to fill the key directory: new root keys or those of a peer.
type job struct {
	// name is the job's in the log.
	name string
	// domain is the one asked for; requestID is the caller's, "" for none.
	domain, requestID string
	// validate refuses a request by its shape.
	validate func() error
	// fill does it. The public keys of its answer are those in the directory.
	fill func(context.Context) (*onboardv1.BootstrapResponse, error)
}

// outcome carries the result of one job to the caller that began it.
type outcome struct {
	response *onboardv1.BootstrapResponse
	err      error
}

// once runs the job, unless the directory is full by now. One runs at a time;
// the others wait for it, and if it fails one of them is next.
func (s *Service) once(ctx context.Context, j job) (*onboardv1.BootstrapResponse, error) {
	for {
		attempt, wait, err := s.begin(j)
		switch {
		case err != nil:
			return nil, err
		case wait == nil && attempt == nil:
			return s.replay(j)
		case attempt != nil:
			return s.await(ctx, attempt, j)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// begin decides under the lock what a call is: a repetition (nil, nil), one
// that has to wait, or the next attempt, whose place it takes.
func (s *Service) begin(j job) (attempt chan outcome, wait <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil, nil, nil
	}
	if err := j.validate(); err != nil {
		return nil, nil, err
	}
	if s.running != nil {
		return nil, s.running, nil
	}
	s.running = make(chan struct{})
	return make(chan outcome, 1), nil, nil
}

// replay answers a call that comes when all is done.
func (s *Service) replay(j job) (*onboardv1.BootstrapResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record != nil && s.requestID != "" && s.requestID == j.requestID {
		return s.record, nil
	}
	return nil, ErrAlreadyBootstrapped
}

// await runs the attempt on a goroutine of the service's own and waits for it
// as long as the caller does.
func (s *Service) await(ctx context.Context, attempt chan outcome, j job) (*onboardv1.BootstrapResponse, error) {
	s.background.Go(func() {
		response, err := s.attempt(context.WithoutCancel(ctx), j)
		s.conclude(j.requestID, response, err)
		attempt <- outcome{response, err}
	})
	select {
	case o := <-attempt:
		return o.response, o.err
	case <-ctx.Done():
		s.cfg.Log.Warn("the caller of " + j.name + " left")
		return nil, ctx.Err()
	}
}

// conclude publishes the outcome and lets the next caller in.
func (s *Service) conclude(requestID string, response *onboardv1.BootstrapResponse, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.done, s.record, s.requestID = true, response, requestID
	case errors.Is(err, ErrAlreadyBootstrapped):
		s.done = true // by another process
	}
	close(s.running)
	s.running = nil
}

// attempt is one job. A panic in it is an error like any other: the service
// must let the next caller in.
func (s *Service) attempt(ctx context.Context, j job) (response *onboardv1.BootstrapResponse, err error) {
	defer func() {
		if p := recover(); p != nil {
			response, err = nil, fmt.Errorf("%s: panic: %v", j.name, p)
		}
	}()
	s.cfg.Log.Info(j.name+" begins", zap.String("domain", j.domain))
	response, err = j.fill(ctx)
	if err != nil {
		s.cfg.Log.Error(j.name+" failed", zap.NamedError("err", err), zap.NamedError("cause", errors.Unwrap(err)))
		return nil, err
	}
	s.cfg.Log.Info(j.name+" completed", zap.String("domain", j.domain))
	return response, nil
}
