package rpc

import (
	"context"
	"fmt"
	"net/http"

	"connectrpc.com/connect"
	"go.uber.org/zap"
)

// gate runs when the headers of a call are known and before its message is
// read, so that nothing is parsed for a caller without a token.
func (c *Chain) gate(ctx context.Context, spec connect.Spec, peer connect.Peer, header http.Header) (context.Context, error) {
	call := c.callOf(ctx)
	call.procedure = spec.Procedure
	call.reads = spec.IdempotencyLevel == connect.IdempotencyNoSideEffects
	guard, listed := c.access[spec.Procedure]
	if !listed {
		return nil, c.public(call, ErrNotListed)
	}
	if err := guard.Check(header, peer.Addr); err != nil {
		return nil, c.public(call, err)
	}
	if spec.StreamType == connect.StreamTypeUnary {
		call.body.ahead = c.max + 1
	}
	return ctx, nil
}

// intercept gives a call its deadline and its turn, recovers from a panic of the
// service and makes its error public. The message has been read by then, so that
// a slow sender takes nobody's turn.
func (c *Chain) intercept(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		call := c.callOf(ctx)
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		if err := c.turn(ctx, &call.pending); err != nil {
			return nil, c.public(call, err)
		}
		defer func() { <-c.slots }()
		res, err := c.recovered(ctx, req, next)
		if err != nil {
			return nil, c.public(call, err)
		}
		call.code, call.coded = 0, true
		return res, nil
	}
}

// turn returns nil when the call has its turn: fewer are in work than may be.
func (c *Chain) turn(ctx context.Context, p *pending) error {
	select {
	case c.slots <- struct{}{}:
		p.release()
		return nil
	default:
	}
	select {
	case c.slots <- struct{}{}:
		p.release()
		return nil
	case <-p.wait():
		p.hurry()
		return ErrBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// recovered admits the caller, calls next, and turns a panic of either into an
// error that no rule maps. The stack goes to the log, here, because it is gone later.
func (c *Chain) recovered(ctx context.Context, req connect.AnyRequest, next connect.UnaryFunc) (res connect.AnyResponse, err error) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares the value itself
			panic(v)
		}
		c.log.Error("panic in service", zap.String("request_id", RequestID(ctx)),
			zap.String("procedure", req.Spec().Procedure), zap.Any("panic", v), zap.StackSkip("stack", 1))
		res, err = nil, fmt.Errorf("recovering from a panic: %v", v)
	}()
	admitted := ctx
	if c.admit != nil {
		if admitted, err = c.admit(ctx); err != nil {
			return nil, err
		}
	}
	return next(admitted, req)
}

// public looks err up in the table and records it in the call, whose log line
// will hold the cause. What no rule maps, and data that was lost or tampered with,
// is logged as an error besides. It is the only place where an error for a client
// is made.
func (c *Chain) public(call *call, err error) *connect.Error {
	code, text, mapped := c.errors.Lookup(err)
	if !mapped {
		code, text = connect.CodeInternal, internalText(call.id())
	}
	if !mapped || code == connect.CodeDataLoss {
		c.log.Error("call failed", zap.String("request_id", call.id()), zap.String("procedure", call.procedure), zap.NamedError("err", err))
	}
	call.code, call.coded, call.err = code, true, err
	call.tellID()
	out := connect.NewError(code, publicText(text))
	if code == connect.CodeUnauthenticated {
		out.Meta().Set("WWW-Authenticate", "Bearer")
	}
	return out
}

// publicText is an error that is nothing but its text.
type publicText string

func (t publicText) Error() string { return string(t) }

func internalText(id string) string { return "internal error (id " + id + ")" }
