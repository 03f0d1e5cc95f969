//! Alibaba Cloud OSS: signing, listing, ranged GET, upload.
