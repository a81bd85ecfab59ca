package agent

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"launcher/internal/errs"
	"launcher/wire"
)

// maxSeries bounds the time series that programs may have on a node.
const maxSeries = 20_000

// userMetrics are the metrics of programs. A process tells all its values, as they have
// grown since it began; what counters and histograms of processes that have ended came to
// is kept, so that sums never fall.
type userMetrics struct {
	mu       sync.Mutex
	families map[string]*metricFamily // by name; guarded by mu
	series   int                      // guarded by mu
}

type metricFamily struct {
	kind, help string
	keys       []string
	bounds     []float64
	series     map[string]*metricSeries // by job and values of tags
}

type metricSeries struct {
	job   string
	tags  []string
	live  map[uint32]sample // by client
	ended sample
}

// sample is a value, or the counts of a histogram's buckets and, as value, the sum.
type sample struct {
	pid    int
	value  float64
	counts []float64
}

func (s *sample) add(o sample) {
	s.value += o.value
	if len(s.counts) < len(o.counts) {
		s.counts = append(s.counts, make([]float64, len(o.counts)-len(s.counts))...)
	}
	for i, n := range o.counts {
		s.counts[i] += n
	}
}

// toldMetric is a metric as a program tells it: [name, kind, description, [key],
// [boundary], [[[tag value], value, [count per bucket]]]].
type toldMetric struct {
	Name   string
	Kind   string
	Help   string
	Keys   []string
	Bounds []float64
	Series []toldSeries
}

type toldSeries struct {
	Tags   []string
	Value  float64
	Counts []float64
}

// tell takes a process's metrics (docs/tasks.md section 3, Call "metrics").
func (u *userMetrics) tell(client uint32, pid int, job string, body []byte) error {
	var told []toldMetric
	if err := wire.Unmarshal(body, &told); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.families == nil {
		u.families = map[string]*metricFamily{}
	}
	for _, m := range told {
		if !slices.Contains([]string{"counter", "gauge", "histogram"}, m.Kind) {
			return errs.New(errs.Invalid, "the metric %.60s: its kind is %.20q", m.Name, m.Kind)
		}
		f := u.families[m.Name]
		if f == nil {
			f = &metricFamily{kind: m.Kind, help: m.Help, keys: m.Keys, bounds: m.Bounds, series: map[string]*metricSeries{}}
			u.families[m.Name] = f
		}
		if f.kind != m.Kind || !slices.Equal(f.keys, m.Keys) || !slices.Equal(f.bounds, m.Bounds) {
			return errs.New(errs.Exists, "there is a metric %.60s of another kind, with other tags or boundaries, on this node", m.Name).Hint("give one of them another name")
		}
		for _, t := range m.Series {
			if len(t.Tags) != len(m.Keys) || m.Kind == "histogram" && len(t.Counts) != len(m.Bounds)+1 {
				return errs.New(errs.Corrupt, "the metric %.60s: a value with %d tags of %d", m.Name, len(t.Tags), len(m.Keys))
			}
			key := job + "\x00" + strings.Join(t.Tags, "\x00")
			s := f.series[key]
			if s == nil {
				if u.series >= maxSeries {
					return errs.New(errs.Exhausted, "programs have %d time series on this node", u.series).Hint("tags are for few different values: use fewer")
				}
				u.series++
				s = &metricSeries{job: job, tags: t.Tags, live: map[uint32]sample{}}
				f.series[key] = s
			}
			s.live[client] = sample{pid, t.Value, t.Counts}
		}
	}
	return nil
}

// ended: a process is gone. Its gauges go with it.
func (u *userMetrics) ended(client uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.families {
		for key, s := range f.series {
			x, ok := s.live[client]
			if !ok {
				continue
			}
			delete(s.live, client)
			if f.kind != "gauge" {
				s.ended.add(x)
			} else if len(s.live) == 0 {
				delete(f.series, key)
				u.series--
			}
		}
	}
}

var notInName = regexp.MustCompile(`[^a-zA-Z0-9_]`)

// labels makes names of tags into names of labels, ours aside.
func labels(keys []string, more ...string) []string {
	out := slices.Clone(more)
	for _, k := range keys {
		k = notInName.ReplaceAllString(k, "_")
		if k == "" || k[0] >= '0' && k[0] <= '9' || strings.HasPrefix(k, "__") || k == "node" || k == "le" || slices.Contains(out, k) {
			k = "tag_" + k + strconv.Itoa(len(out))
		}
		out = append(out, k)
	}
	return out
}

// collect gives them in Prometheus's terms: those of a job summed, gauges for each process.
func (u *userMetrics) collect(ch chan<- prometheus.Metric) {
	u.mu.Lock()
	defer u.mu.Unlock()
	send := func(m prometheus.Metric, err error) {
		if err == nil { // else a tag that is no text: it is left out
			ch <- m
		}
	}
	seen := map[string]bool{}
	for _, name := range sortedKeys(u.families) {
		f := u.families[name]
		full := "ray_" + notInName.ReplaceAllString(name, "_")
		if f.kind == "counter" && !strings.HasSuffix(full, "_total") {
			full += "_total"
		}
		if seen[full] { // two names that are one in Prometheus
			continue
		}
		seen[full] = true
		if f.kind == "gauge" {
			d := prometheus.NewDesc(full, f.help, labels(f.keys, "job", "pid"), nil)
			for _, s := range f.series {
				by := map[int]sample{}
				for _, client := range sortedKeys(s.live) { // a process that connected again is there twice for a while
					by[s.live[client].pid] = s.live[client]
				}
				for pid, x := range by {
					send(prometheus.NewConstMetric(d, prometheus.GaugeValue, x.value, append([]string{s.job, strconv.Itoa(pid)}, s.tags...)...))
				}
			}
			continue
		}
		d := prometheus.NewDesc(full, f.help, labels(f.keys, "job"), nil)
		for _, s := range f.series {
			sum := sample{}
			sum.add(s.ended)
			for _, x := range s.live {
				sum.add(x)
			}
			values := append([]string{s.job}, s.tags...)
			if f.kind == "counter" {
				send(prometheus.NewConstMetric(d, prometheus.CounterValue, sum.value, values...))
				continue
			}
			buckets, n := map[float64]uint64{}, uint64(0)
			for i, c := range sum.counts {
				n += uint64(math.Max(c, 0))
				if i < len(f.bounds) {
					buckets[f.bounds[i]] = n
				}
			}
			send(prometheus.NewConstHistogram(d, n, sum.value, buckets, values...))
		}
	}
}
