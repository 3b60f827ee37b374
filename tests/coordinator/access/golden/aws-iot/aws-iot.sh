#!/bin/sh
# Written by `tunefleet broker-config aws-iot --fleet home`.
# Makes the policies; then register each certificate and attach its policy, as below for lamp.
# In the place of `arn:aws:iot:*:*:` a region and an account may stand in the policies.
set -e
aws iot create-policy --policy-name tunefleet-home-device-publish \
  --policy-document file://device-publish-policy.json
aws iot create-policy --policy-name tunefleet-home-device-receive \
  --policy-document file://device-receive-policy.json
aws iot create-policy --policy-name tunefleet-home-device-subscribe \
  --policy-document file://device-subscribe-policy.json
aws iot create-policy --policy-name tunefleet-home-coordinator \
  --policy-document file://coordinator-policy.json
# arn=$(aws iot register-certificate-without-ca --status ACTIVE --query certificateArn \
#   --output text --certificate-pem file://certs/devices/lamp/tls.crt)
# for name in device-publish device-receive device-subscribe; do
#   aws iot attach-policy --policy-name "tunefleet-home-$name" --target "$arn"; done
# Take one back: aws iot update-certificate --new-status REVOKED --certificate-id ID
