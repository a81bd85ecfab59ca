module launcher

go 1.26.0

require github.com/ugorji/go/codec v1.3.2

require (
	github.com/hashicorp/yamux v0.1.2 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
