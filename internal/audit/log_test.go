package audit_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
)

func TestAppendRecordsWhatHappened(t *testing.T) {
	store := audittest.NewStore()
	l := audittest.NewLog(t, store)
	for i := range uint64(20) {
		r, err := l.Append(t.Context(), audit.Event{Kind: audit.ReleaseAppKey, Fields: map[string]string{"app_id": "01", "empty": ""}})
		if err != nil || r.Seq != i {
			t.Fatalf("Append = %v, %v, want seq %d", r, err, i)
		}
	}
	records := store.Records(t)
	for i, r := range records {
		if diff := cmp.Diff(map[string]string{"app_id": "01"}, r.Fields); diff != "" || r.Seq != uint64(i) || r.Kind != audit.ReleaseAppKey {
			t.Errorf("record %d = %v", i, r)
		}
	}
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check = %v, want nil", err)
	}
}
