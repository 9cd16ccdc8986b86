package manual_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/manual"
)

func root() *cobra.Command {
	top := &cobra.Command{Use: "tool", Short: "Do things", Version: "1"}
	one := &cobra.Command{
		Use: "one --x N", Short: "Do one thing", Run: func(*cobra.Command, []string) {},
		Long:    "Do one thing in C:\\dir.\n.dots and 'quotes' are text.\n\nSecond paragraph:\n\n\tcode ~/.x",
		Example: "  tool one --x 1 \\\n      --y",
	}
	one.Flags().SortFlags = false
	one.Flags().Int("x", 3, "take `N` things")
	one.Flags().BoolP("yes", "y", false, "ask nobody")
	one.Flags().String("secret", "", "not shown")
	if err := one.Flags().MarkHidden("secret"); err != nil {
		panic(err)
	}
	top.PersistentFlags().Bool("loud", false, "say more")
	hidden := &cobra.Command{Use: "hidden", Short: "Not shown", Hidden: true, Run: func(*cobra.Command, []string) {}}
	top.AddCommand(one, hidden)
	return top
}

func TestPages(t *testing.T) {
	pages := manual.Pages(root(), "product", manual.Section{Title: "EXIT STATUS", Entries: [][2]string{{"0", "All is well."}}})
	var names []string
	for n := range pages {
		names = append(names, n)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"tool-one.1", "tool.1"}, names); diff != "" {
		t.Errorf("Pages() (-want +got):\n%s", diff)
	}
	want := `.TH "TOOL\-ONE" 1 "" "product" "tool manual"
.SH "NAME"
tool\-one \- do one thing
.SH "SYNOPSIS"
.nf
\fBtool one\fR \-\-x N [flags]
.fi
.SH "DESCRIPTION"
Do one thing in C:\edir.
\&.dots and 'quotes' are text.
.PP
Second paragraph:
.PP
.RS 4
.nf
  code \(ti/.x
.fi
.RE
.SH "OPTIONS"
.TP
\fB\-\-x\fR \fIN\fR
Take N things (default 3).
.TP
\fB\-y\fR, \fB\-\-yes\fR
Ask nobody.
.TP
\fB\-h\fR, \fB\-\-help\fR
Help for one.
.SS "Options of all these commands"
.TP
\fB\-\-loud\fR
Say more.
.SH "EXAMPLES"
.RS 4
.nf
tool one \-\-x 1 \e
    \-\-y
.fi
.RE
.SH "EXIT STATUS"
.TP
\fB0\fR
All is well.
.SH "SEE ALSO"
.BR tool (1)
`
	if diff := cmp.Diff(want, pages["tool-one.1"]); diff != "" {
		t.Errorf("tool-one.1 (-want +got):\n%s", diff)
	}
	wantTop := `.TH "TOOL" 1 "" "product" "tool manual"
.SH "NAME"
tool \- do things
.SH "SYNOPSIS"
.nf
\fBtool\fR command [flags]
.fi
.SH "DESCRIPTION"
Do things.
.SH "COMMANDS"
.TP
\fBone\fR
Do one thing. See tool\-one(1).
.SH "OPTIONS"
.TP
\fB\-h\fR, \fB\-\-help\fR
Help for tool.
.TP
\fB\-\-loud\fR
Say more.
.TP
\fB\-v\fR, \fB\-\-version\fR
Version for tool.
.SH "EXIT STATUS"
.TP
\fB0\fR
All is well.
.SH "SEE ALSO"
.BR tool\-one (1)
`
	if diff := cmp.Diff(wantTop, pages["tool.1"]); diff != "" {
		t.Errorf("tool.1 (-want +got):\n%s", diff)
	}
}
