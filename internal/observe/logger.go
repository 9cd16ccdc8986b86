// Package observe makes what an operator looks at: the logger and the registry
// of metrics. Both are made once by a command and handed down; nothing here is
// global.
package observe

import (
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The values of Config.Format.
const (
	// FormatConsole is "2025-11-20T10:35:20Z INFO message {fields as JSON}".
	FormatConsole = "console"
	// FormatJSON is one JSON object a line: ts, level, msg and the fields.
	FormatJSON = "json"
)

// Config says how to log.
type Config struct {
	// Level is debug, info, warn or error; required.
	Level string
	// Format is one of the Format constants; required.
	Format string
	// Out takes the lines, one Write each; required. The logger serializes its
	// own writes.
	Out io.Writer
	// AtomicLevel, when given, is set to Level and obeyed from then on, so that
	// the level can be changed while the logger is in use; optional.
	AtomicLevel *zap.AtomicLevel
	// Now is the clock; optional, the system's by default.
	Now func() time.Time
}

// NewLogger returns a logger whose lines hold no control characters and no value
// of a field that is named like a secret. Redaction is a second line of defense:
// it looks at the keys of fields, not at messages or inside of values.
func NewLogger(c Config) (*zap.Logger, error) {
	if c.Out == nil {
		return nil, errors.New("making logger: no output given")
	}
	level := zap.NewAtomicLevel()
	if c.AtomicLevel != nil {
		level = *c.AtomicLevel
	}
	l, err := parseLevel(c.Level)
	if err != nil {
		return nil, err
	}
	level.SetLevel(l)
	encoder, err := newEncoder(c.Format)
	if err != nil {
		return nil, err
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(c.Out)), level)
	options := []zap.Option{zap.ErrorOutput(zapcore.Lock(zapcore.AddSync(c.Out)))}
	if c.Now != nil {
		options = append(options, zap.WithClock(clock{now: c.Now}))
	}
	return zap.New(&redactingCore{Core: core}, options...), nil
}

func parseLevel(name string) (zapcore.Level, error) {
	switch name {
	case "debug":
		return zapcore.DebugLevel, nil
	case "info":
		return zapcore.InfoLevel, nil
	case "warn":
		return zapcore.WarnLevel, nil
	case "error":
		return zapcore.ErrorLevel, nil
	default:
		return 0, fmt.Errorf("making logger: unknown level %q", name)
	}
}

func newEncoder(format string) (zapcore.Encoder, error) {
	c := zapcore.EncoderConfig{
		TimeKey:          "ts",
		LevelKey:         "level",
		NameKey:          "logger",
		MessageKey:       "msg",
		EncodeTime:       encodeTime,
		EncodeLevel:      zapcore.CapitalLevelEncoder,
		EncodeDuration:   zapcore.StringDurationEncoder,
		ConsoleSeparator: " ",
	}
	switch format {
	case FormatConsole:
		return &lineEncoder{Encoder: zapcore.NewConsoleEncoder(c)}, nil
	case FormatJSON:
		c.EncodeLevel = zapcore.LowercaseLevelEncoder
		return &lineEncoder{Encoder: zapcore.NewJSONEncoder(c)}, nil
	default:
		return nil, fmt.Errorf("making logger: unknown format %q", format)
	}
}

// encodeTime writes RFC 3339 in UTC, to the second.
func encodeTime(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
	enc.AppendString(t.UTC().Format(time.RFC3339))
}

// clock is a zapcore.Clock over a function.
type clock struct{ now func() time.Time }

func (c clock) Now() time.Time { return c.now() }

func (c clock) NewTicker(d time.Duration) *time.Ticker { return time.NewTicker(d) }
