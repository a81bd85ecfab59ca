package agent

import (
	"path/filepath"

	"launcher/agent/workers"
)

// sdkServer is the task reactor's shell: the connections of drivers and workers.
type sdkServer struct {
	a *agent
}

func newSDKServer(a *agent) *sdkServer { return &sdkServer{a: a} }

// roomGiven: the core has given room back that tasks may want.
func (s *sdkServer) roomGiven() {}

func (s *sdkServer) output(w workers.Worker, stream uint8, text []byte) {}
func (s *sdkServer) started(id uint32, pid int)                         {}
func (s *sdkServer) failed(id uint32, err error)                        {}
func (s *sdkServer) ended(id uint32, end workers.End)                   {}

// newWorkers takes up the workers of an earlier agent.
func newWorkers(a *agent) *workers.Pool {
	s := a.sdk
	p := workers.New(workers.Config{Super: a.super, Log: a.log, Node: a.cfg.Node, Dir: filepath.Join(a.cfg.Dir, "workers"),
		Output: s.output, Started: s.started, Failed: s.failed, Ended: s.ended})
	a.fdMu.Lock()
	defer a.fdMu.Unlock()
	a.fds = p.Take(a.fds)
	return p
}
