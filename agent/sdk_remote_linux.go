package agent

import (
	"launcher/wire"
	"launcher/wire/sdk"
)

// fetch finds the value of another node's object. a.mu is held.
func (s *sdkServer) fetch(id wire.ObjectID) {
	e := sdk.Error{Code: "lost", Message: "object " + id.String() + " is another node's, and not to be had from node " + string(s.a.cfg.Node), Node: string(s.a.cfg.Node)}.Encode()
	s.wg.Go(func() {
		s.turn(func(now int64) { s.core.Fetched(now, id, sdk.Failure, 1, int64(len(e)), e, nil) })
	})
}

func (s *sdkServer) unfetch(wire.ObjectID) {}

func (s *sdkServer) evicted(now int64, id wire.ObjectID) {
	s.core.Lost(now, id, "its copy was dropped for room")
}
