package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"launcher/agent/tasks"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// metrics are what the node tells of itself in Prometheus's terms, when it is asked.
type metrics struct {
	a    *agent
	user userMetrics
	all  *prometheus.Registry
}

func newMetrics(a *agent) *metrics {
	m := &metrics{a: a, all: prometheus.NewRegistry()}
	node := prometheus.WrapRegistererWith(prometheus.Labels{"node": string(a.cfg.Node)}, m.all)
	node.MustRegister(m)
	prometheus.WrapRegistererWithPrefix("launcher_agent_", node).MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.questions.answers(wire.QueryMetrics, func(context.Context, []byte) ([]byte, error) { return m.text() })
	return m
}

// Describe says nothing: the metrics of programs are not known before.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// handler answers GET /metrics.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.all, promhttp.HandlerOpts{MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError})
}

// text is all of it, as a JSON string.
func (m *metrics) text() ([]byte, error) {
	families, err := m.all.Gather()
	if err != nil && len(families) == 0 {
		return nil, errs.Wrap(errs.Internal, err, "the metrics of node %s", m.a.cfg.Node)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, errs.Wrap(errs.Internal, err, "the metrics of node %s", m.a.cfg.Node)
		}
	}
	return json.Marshal(b.String())
}

var (
	descResources = prometheus.NewDesc("launcher_resources", "What the node has: CPU, GPU in units, memory in bytes.", []string{"resource", "state"}, nil)
	descTasks     = prometheus.NewDesc("launcher_tasks", "Tasks of programs that were submitted here and have not ended.", []string{"state"}, nil)
	descActors    = prometheus.NewDesc("launcher_actors", "Actors that were made here.", []string{"state"}, nil)
	descEnded     = prometheus.NewDesc("launcher_tasks_ended_total", "Attempts of programs' tasks that ended here since the agent began.", []string{"state"}, nil)
	descObjects   = prometheus.NewDesc("launcher_objects", "Objects that the node owns or holds.", nil, nil)
	descBytes     = prometheus.NewDesc("launcher_object_bytes", "Bytes of objects.", []string{"place"}, nil)
	descLimit     = prometheus.NewDesc("launcher_object_memory_limit_bytes", "Bytes that objects in memory may take.", nil, nil)
	descProcesses = prometheus.NewDesc("launcher_processes", "Processes of programs on the node.", []string{"kind"}, nil)
)

// Collect gives the numbers of now.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	a := m.a
	a.mu.Lock()
	total, free := a.core.Total(), a.core.Free()
	n := tasks.Numbers{}
	kinds := map[string]int{"driver": 0, "worker": 0}
	if s := a.sdk; s != nil && s.core != nil {
		n = s.core.Numbers()
		for _, cl := range s.clients {
			if cl.Kind == sdk.KindWorker {
				kinds["worker"]++
			} else if cl.Kind == sdk.KindDriver {
				kinds["driver"]++
			}
		}
	}
	a.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	has, left := amounts(total), amounts(free)
	for _, r := range sortedKeys(has) {
		gauge(descResources, has[r], r, "total")
		gauge(descResources, left[r], r, "free")
	}
	for state, v := range n.Tasks {
		gauge(descTasks, float64(v), state)
	}
	for state, v := range n.Actors {
		gauge(descActors, float64(v), state)
	}
	for state, v := range n.Ended {
		ch <- prometheus.MustNewConstMetric(descEnded, prometheus.CounterValue, float64(v), state)
	}
	gauge(descObjects, float64(n.Objects))
	gauge(descBytes, float64(n.InlineBytes), "inline")
	for kind, v := range kinds {
		gauge(descProcesses, float64(v), kind)
	}
	if s := a.sdk; s != nil && s.store != nil {
		u := s.store.Usage()
		gauge(descBytes, float64(u.Live), "memory")
		gauge(descBytes, float64(u.Spilled), "disk")
		gauge(descLimit, float64(u.Limit))
	}
	m.user.collect(ch)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
