// Package configs reads the three kinds of file that users write: cluster specs, job
// files and sweep files (our TOML, and W&B's YAML).
//
// The whole schema of docs is typed and checked here, also for parts that are not built
// yet. A loader reports every fault of a file at once, each as
//
//	FILE:LINE: KEY: what is wrong; what is allowed
//
// and gives nothing for a file with a fault. Values that are right but belong to a part
// this version does not have are faults of kind errs.Unbuilt ("not in this version");
// the table in unbuilt.go is the only place that knows them, and testdata/unbuilt.txt
// shows one line for each.
//
// How it works: a file becomes a tree of nodes that know their line (toml.go, yaml.go);
// a reader pulls typed values out of each table by name (reader.go) and so learns which
// keys are known; what nobody asked for is an unknown key.
package configs
