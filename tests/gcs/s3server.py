"""An S3 server: MiniStack's, whose checksums in Python take three seconds for a part. `s3server PORT`."""

import os
import sys

if __name__ == "__main__":
    os.environ |= {"GATEWAY_PORT": sys.argv[1], "SERVICES": "s3", "BIND_HOST": "127.0.0.1"}

    import google_crc32c
    from ministack import app
    from ministack.services import s3

    s3._crc32c = google_crc32c.value  # the same numbers, two hundred times as fast
    sys.argv = sys.argv[:1]
    app.main()
