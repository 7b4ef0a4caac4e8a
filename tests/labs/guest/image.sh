#!/bin/sh
# image.sh FOLDER SOURCE: builds SOURCE as a static program and packs it as FOLDER/image.tar, an OCI image layout with
# one layer and the name below, which needs no registry. containerd imports it.
set -eu
folder=$1 source=$2
readonly name=weave.test/guest:1

case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) echo "no image for $(uname -m)" >&2; exit 1 ;;
esac

mkdir -p "$folder/root" "$folder/layout/blobs/sha256"
rustc --edition 2024 -O -C target-feature=+crt-static -C strip=symbols -o "$folder/root/guest" "$source"
tar -C "$folder/root" --owner=0 --group=0 -cf "$folder/blob" guest

# keep: moves FOLDER/blob to its place; says what the next document has to say of it.
keep() {
  sum=$(sha256sum <"$folder/blob" | cut -d ' ' -f 1) size=$(stat -c %s "$folder/blob")
  mv "$folder/blob" "$folder/layout/blobs/sha256/$sum"
  descriptor="\"digest\": \"sha256:$sum\", \"size\": $size"
}

keep
layer="{\"mediaType\": \"application/vnd.oci.image.layer.v1.tar\", $descriptor}"
cat >"$folder/blob" <<END
{"architecture": "$arch", "os": "linux", "config": {"Cmd": ["/guest"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$sum"]}}
END
keep
config="{\"mediaType\": \"application/vnd.oci.image.config.v1+json\", $descriptor}"
cat >"$folder/blob" <<END
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": $config, "layers": [$layer]}
END
keep
cat >"$folder/layout/index.json" <<END
{"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", $descriptor,
 "platform": {"architecture": "$arch", "os": "linux"}, "annotations": {"io.containerd.image.name": "$name"}}]}
END
echo '{"imageLayoutVersion": "1.0.0"}' >"$folder/layout/oci-layout"
tar -C "$folder/layout" -cf "$folder/image.tar" .
