package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"

	provisionv1 "teekms/gen/provision/v1"
	"teekms/internal/storage"
)

// Warnings that people know by these words.
const (
	warnNoPKCS12 = "No PKCS12 file has been supplied"
	warnErased   = "The KMS database will be erased."
)

// outcome is how an Apply ended.
type outcome struct {
	warnings []string
	err      error
}

// Start tries the settings and has the KMS start with them. It goes on when its
// caller leaves. Of several calls one is served; the others are told so.
func (s *Server) Start(ctx context.Context, req *provisionv1.StartRequest) (*provisionv1.StartResponse, error) {
	ended, settings, err := s.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	select {
	case o := <-ended:
		if o.err != nil {
			return nil, o.err
		}
		return started200(append(warningsOf(settings), o.warnings...)), nil
	case <-ctx.Done():
		s.cfg.Log.Warn("the caller of Start left")
		return nil, ctx.Err()
	}
}

// started200 is the answer of a start that succeeded.
func started200(warnings []string) *provisionv1.StartResponse {
	text := "Starting the KMS server"
	if len(warnings) > 0 {
		text += " with warnings: " + strings.Join(warnings, " ")
	}
	return &provisionv1.StartResponse{Success: text, Warnings: warnings}
}

// warningsOf says what is to be said of settings that are right.
func warningsOf(settings Settings) []string {
	var warnings []string
	if settings.PKCS12.Len() == 0 {
		warnings = append(warnings, warnNoPKCS12)
	}
	if settings.ClearDatabase {
		warnings = append(warnings, warnErased)
	}
	return warnings
}

// begin takes the place of the one start that may run, and runs it on a
// goroutine of the server's own.
func (s *Server) begin(ctx context.Context, req *provisionv1.StartRequest) (<-chan outcome, Settings, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return nil, Settings{}, errClosing
	case s.phase == starting:
		return nil, Settings{}, errBusy
	case s.phase == started:
		return nil, Settings{}, errStarted
	case s.now.Database.Type == "":
		return nil, Settings{}, errNoDatabase
	}
	s.phase = starting
	settings := s.now
	settings.ClearDatabase, settings.By = req.GetClearDatabase(), callerOf(ctx).Caller
	ended := make(chan outcome, 1)
	s.background.Go(func() {
		warnings, err := s.apply(context.WithoutCancel(ctx), settings)
		ended <- outcome{warnings, s.conclude(settings, err)}
	})
	return ended, settings, nil
}

// apply calls the hook, within its time. A panic in it is an error like any
// other: the server must let the next start in.
func (s *Server) apply(ctx context.Context, settings Settings) (warnings []string, err error) {
	defer func() {
		if p := recover(); p != nil {
			warnings, err = nil, errors.New("recovering from a panic while the settings were tried")
			s.cfg.Log.Error("panic while the settings were tried", zap.StackSkip("stack", 1))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ApplyTimeout)
	defer cancel()
	s.cfg.Log.Info("trying the settings", zap.String("type", string(settings.Database.Type)),
		zap.Bool("own_certificate", settings.PKCS12.Len() > 0), zap.Bool("clear_database", settings.ClearDatabase),
		zap.String("by", settings.By.String()))
	if err := settings.Database.Validate(); err != nil {
		return nil, err
	}
	warnings, err = s.cfg.Apply(ctx, settings)
	if err != nil && ctx.Err() != nil && !errors.Is(err, storage.ErrUnavailable) {
		err = &Refusal{Reason: fmt.Sprintf("the settings could not be tried within %s", s.cfg.ApplyTimeout), Err: err}
	}
	return warnings, err
}

// conclude publishes the outcome. After a failure everything is as it was
// before the start; after a success nothing is kept.
func (s *Server) conclude(settings Settings, err error) error {
	err = hidden(err, secretsOf(&settings))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		_, text, known := s.errors.Lookup(err)
		if !known {
			text = "internal error"
		}
		s.phase, s.failed = configuring, text
		s.cfg.Log.Error("the KMS cannot start with these settings", zap.NamedError("err", err))
		return err
	}
	s.phase, s.failed, s.now = started, "", Settings{}
	s.cfg.Log.Info("configuration finished")
	close(s.done)
	return nil
}
