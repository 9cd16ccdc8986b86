package status_test

import (
	"errors"
	"fmt"
	"testing"

	"teekms/cmd/kmsctl/internal/status"
)

func TestOf(t *testing.T) {
	cause := errors.New("cause")
	tests := []struct {
		name string
		err  error
		want int
	}{
		{"no error", nil, status.OK},
		{"any error", cause, status.Failed},
		{"an error with a code", status.WithCode(status.NoCollateral, cause), status.NoCollateral},
		{"an error with a code in another", fmt.Errorf("doing: %w", status.WithCode(status.NotVerified, cause)), status.NotVerified},
		{"no error with a code", status.WithCode(status.NotVerified, nil), status.OK},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := status.Of(tt.err); got != tt.want {
				t.Errorf("Of(%v) = %d, want %d", tt.err, got, tt.want)
			}
		})
	}
	if err := status.WithCode(status.Usage, cause); !errors.Is(err, cause) {
		t.Errorf("WithCode(%v) does not wrap it", cause)
	}
}
