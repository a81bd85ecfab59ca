package main

import (
	"maps"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/wire"
)

const metricsLong = `Print what the nodes count, as Prometheus text: room, tasks by state, objects, processes,
and what programs count themselves (launcher.util.metrics).

A node's own are also on its agent's socket, for a collector that runs there:
  curl --unix-socket "$LAUNCHER_SOCKET" http://node/metrics`

func (a *app) cmdMetrics() *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "metrics",
		Short: "what the nodes count, as Prometheus text",
		Long:  metricsLong,
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			by, lost, err := ask[string](c.Context(), a, wire.QueryMetrics, node, struct{}{})
			if err != nil {
				return err
			}
			families, err := mergeMetrics(by)
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(families)) {
				if _, err := expfmt.MetricFamilyToText(a.out, families[name]); err != nil {
					return errs.Wrap(errs.Exhausted, err, "writing the metrics")
				}
			}
			a.noteUnreached(lost)
			return nil
		},
	}
	c.Flags().StringVar(&node, "node", "", "only those of this node")
	return c
}

// mergeMetrics makes one text of those of several nodes: a metric's description stands
// once, and each node's values below it.
func mergeMetrics(by map[wire.NodeID]string) (map[string]*dto.MetricFamily, error) {
	out := map[string]*dto.MetricFamily{}
	for _, n := range slices.Sorted(maps.Keys(by)) {
		p := expfmt.NewTextParser(model.UTF8Validation)
		families, err := p.TextToMetricFamilies(strings.NewReader(by[n]))
		if err != nil {
			return nil, errs.Wrap(errs.Corrupt, err, "the metrics of node %s", n)
		}
		for name, f := range families {
			switch have := out[name]; {
			case have == nil:
				out[name] = f
			case have.GetType() == f.GetType(): // else two programs mean different things by the name
				have.Metric = append(have.Metric, f.Metric...)
			}
		}
	}
	return out, nil
}
