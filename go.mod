module launcher

go 1.26.0

require github.com/ugorji/go/codec v1.3.2
