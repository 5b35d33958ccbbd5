// The life of a key with AWS's SDK for JavaScript, with nothing set but the environment.
import assert from "node:assert/strict";
import {
  CreateKeyCommand,
  DecryptCommand,
  DescribeKeyCommand,
  DisableKeyCommand,
  DisabledException,
  EncryptCommand,
  GenerateDataKeyCommand,
  InvalidCiphertextException,
  KMSClient,
  ListKeysCommand,
  ScheduleKeyDeletionCommand,
} from "@aws-sdk/client-kms";

const kms = new KMSClient({ endpoint: process.env.AWS_ENDPOINT_URL, maxAttempts: 1 });
const { KeyMetadata } = await kms.send(new CreateKeyCommand({ Description: "by JavaScript" }));
assert.ok(KeyMetadata.CreationDate instanceof Date);
const KeyId = KeyMetadata.KeyId;

const EncryptionContext = { "Kept As Is": "ü" };
const Plaintext = new TextEncoder().encode("hello");
const { CiphertextBlob } = await kms.send(new EncryptCommand({ KeyId, Plaintext, EncryptionContext }));
const opened = await kms.send(new DecryptCommand({ CiphertextBlob, EncryptionContext }));
assert.deepEqual(opened.Plaintext, Plaintext);
assert.equal(opened.KeyId, KeyMetadata.Arn);
await assert.rejects(kms.send(new DecryptCommand({ CiphertextBlob })), InvalidCiphertextException);

const dataKey = await kms.send(new GenerateDataKeyCommand({ KeyId, KeySpec: "AES_256" }));
assert.equal(dataKey.Plaintext.length, 32);
assert.ok((await kms.send(new ListKeysCommand({ Limit: 1000 }))).Keys.some((key) => key.KeyId === KeyId));

await kms.send(new DisableKeyCommand({ KeyId }));
await assert.rejects(kms.send(new EncryptCommand({ KeyId, Plaintext })), DisabledException);
assert.equal((await kms.send(new DescribeKeyCommand({ KeyId }))).KeyMetadata.KeyState, "Disabled");
const gone = await kms.send(new ScheduleKeyDeletionCommand({ KeyId, PendingWindowInDays: 7 }));
assert.ok(gone.DeletionDate > new Date());
console.log("done");
