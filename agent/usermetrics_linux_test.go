package agent

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"launcher/internal/errs"
	"launcher/wire"
)

type described struct{ u *userMetrics }

func (d described) Describe(chan<- *prometheus.Desc)    {}
func (d described) Collect(ch chan<- prometheus.Metric) { d.u.collect(ch) }

func metricsText(t *testing.T, u *userMetrics) string {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(described{u})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// TestUserMetrics: sums over processes, those that have ended too; gauges go with theirs.
func TestUserMetrics(t *testing.T) {
	u := &userMetrics{}
	tell := func(client uint32, m ...any) error {
		return u.tell(client, int(100+client), "7", wire.Marshal(m))
	}
	counter := func(v float64) any {
		return []any{"calls", "counter", "made", []string{"kind", "job"}, []float64{}, []any{[]any{[]string{"a", "b"}, v, []float64{}}}}
	}
	histogram := func(a, b float64) any {
		return []any{"took", "histogram", "", []string{}, []float64{0.5}, []any{[]any{[]string{}, 2.5, []float64{a, b}}}}
	}
	gauge := []any{"level", "gauge", "", []string{"le"}, []float64{}, []any{[]any{[]string{"\xff"}, 3.0, []float64{}}, []any{[]string{"ok"}, 4.0, []float64{}}}}
	for _, err := range []error{tell(1, counter(2), histogram(1, 0)), tell(1, counter(3), histogram(2, 1)), tell(2, counter(10), gauge)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	u.ended(1)
	if err := tell(3, counter(1), histogram(0, 1)); err != nil {
		t.Fatal(err)
	}
	text := metricsText(t, u)
	for _, want := range []string{
		"# HELP ray_calls_total made", "# TYPE ray_calls_total counter", `ray_calls_total{job="7",kind="a",tag_job2="b"} 14`,
		`ray_took_bucket{job="7",le="0.5"} 2`, `ray_took_bucket{job="7",le="+Inf"} 4`, `ray_took_sum{job="7"} 5`, `ray_took_count{job="7"} 4`,
		`ray_level{job="7",pid="102",tag_le2="ok"} 4`,
	} {
		if !strings.Contains(text, want+"\n") && !strings.Contains(text, want+" ") {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "\xff") {
		t.Error(text)
	}
	u.ended(2)
	if text := metricsText(t, u); strings.Contains(text, "ray_level{") || !strings.Contains(text, " 14\n") {
		t.Error(text)
	}
	if err := tell(3, []any{"calls", "gauge", "", []string{}, []float64{}, []any{}}); errs.KindOf(err) != errs.Exists {
		t.Error(err)
	}
	if err := tell(3, []any{"calls", "counter", "", []string{"kind", "job"}, []float64{}, []any{[]any{[]string{"a"}, 1.0, []float64{}}}}); errs.KindOf(err) != errs.Corrupt {
		t.Error(err)
	}
	if err := u.tell(3, 1, "7", []byte("\xff\x00")); err == nil {
		t.Error("garbage was taken")
	}
}
