package audit_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
)

// discard is a store that keeps the head alone, so that the log is what is
// timed.
type discard struct {
	*audittest.Store
	head []byte
}

func (d *discard) Commit(_ context.Context, build func([]byte) (audit.Batch, error)) error {
	b, err := build(d.head)
	if err == nil {
		d.head = bytes.Clone(b.Head)
	}
	return err
}

// release is an event as GetAppKey records it.
func release() audit.Event {
	hash := strings.Repeat("0a", 32)
	return audit.Event{Kind: audit.ReleaseAppKey, Fields: map[string]string{
		"subject": "app", "app_id": hash[:40], "instance_id": hash[:40], "compose_hash": hash, "os_image_hash": hash,
		"mr_aggregated": hash, "device_id": hash, "tcb_status": "UpToDate", "os_image_by": "allowlist",
		"gateway_app_id": "any", "request_id": "a38d75bb-1",
	}}
}

// BenchmarkAppend times an append without a database, and what it cannot do
// without: the leaf hash, one node hash on average, and the seal of the head.
func BenchmarkAppend(b *testing.B) {
	b.Run("one writer", func(b *testing.B) { benchmarkAppend(b, 1) })
	b.Run("64 writers", func(b *testing.B) { benchmarkAppend(b, 64) })
	b.Run("floor", func(b *testing.B) {
		e := release()
		r := audit.Record{ID: [16]byte{1}, Time: time.Unix(1, 0), Kind: e.Kind, Fields: e.Fields}
		body, err := r.Marshal()
		if err != nil {
			b.Fatal(err)
		}
		head, key := make([]byte, 600), make([]byte, 32)
		begin := cpu(b)
		for b.Loop() {
			h := tlog.RecordHash(body)
			_ = tlog.NodeHash(h, h)
			mac := hmac.New(sha256.New, key)
			mac.Write(head)
			_ = mac.Sum(nil)
		}
		b.ReportMetric(float64(cpu(b)-begin)/float64(b.N), "cpu-ns/op")
		b.ReportMetric(float64(len(body)), "record-bytes")
	})
}

// cpu is the time that the process has had of processors: what other processes
// of the machine do does not count.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkAppend(b *testing.B, writers int) {
	begin := cpu(b)
	defer func() { b.ReportMetric(float64(cpu(b)-begin)/float64(b.N), "cpu-ns/op") }()
	l := open(b, &discard{Store: audittest.NewStore()})
	defer closeLog(b, l)
	b.SetParallelism(writers)
	b.ReportAllocs()
	if writers == 1 {
		for b.Loop() {
			if _, err := l.Append(b.Context(), release()); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Append(b.Context(), release()); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkProofs times proofs from, and the verification of, a log of 100000
// records.
func BenchmarkProofs(b *testing.B) {
	const n = 100_000
	store := audittest.NewStore()
	l := open(b, store)
	defer closeLog(b, l)
	done := make(chan error, 64)
	for w := range 64 {
		go func() {
			for i := w; i < n; i += 64 {
				e := release()
				if _, err := l.Append(context.Background(), e); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 64 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.Run("inclusion", func(b *testing.B) {
		for b.Loop() {
			if err := fourth(l.ProveRecord(b.Context(), n/3, 0)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("consistency", func(b *testing.B) {
		for b.Loop() {
			if err := second(l.ProveTree(b.Context(), n/3, 0)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("checkpoint", func(b *testing.B) {
		for b.Loop() {
			if err := errOf(l.Checkpoint(b.Context())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run(fmt.Sprintf("verify %d records", n), func(b *testing.B) {
		rows := store.State().Rows
		for b.Loop() {
			var tree audit.Tree
			for _, row := range rows {
				if _, err := audit.Parse(row.Body); err != nil {
					b.Fatal(err)
				}
				tree.Append(audit.Hash(row.Body))
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/record")
	})
}
