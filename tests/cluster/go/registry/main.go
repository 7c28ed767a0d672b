// A container image registry on plain http: CNCF distribution with files on disk and nothing else.
package main

import (
	"context"
	"log"
	"os"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

// registry ADDRESS FOLDER
func main() {
	config := &configuration.Configuration{Version: configuration.CurrentVersion}
	config.HTTP.Addr = os.Args[1]
	config.HTTP.Secret = "one process needs no shared secret"
	config.Log.Level = "warn"
	config.Log.AccessLog.Disabled = true
	config.Storage = configuration.Storage{"filesystem": {"rootdirectory": os.Args[2]}}
	server, err := registry.NewRegistry(context.Background(), config)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.ListenAndServe())
}
