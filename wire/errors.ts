// Every error that leaves Godwit carries a stable code from this table. docs/reference/protocol.md shows the same table
// and a test compares them. Enters: a code, facts for the message, perhaps a cause. Leaves: a GodwitError. A code never
// changes its meaning.

/** Process exit codes of the `godwit` command (docs/reference/cli.md). */
export const EXIT = {
  ok: 0,
  internal: 1,
  usage: 2,
  refused: 3,
  failed: 4,
  unreachable: 5,
  denied: 6,
  cancelled: 7,
  timeout: 8,
} as const

type ErrorRow = { exit: number; retryable: boolean; meaning: string; hint: string }
const row = (exit: number, retryable: boolean, meaning: string, hint: string): ErrorRow => ({ exit, retryable, meaning, hint })
const { internal, usage, refused, failed, unreachable, denied, cancelled, timeout } = EXIT

/** The error table: code -> exit code, whether the same call may succeed later, meaning, and what to do. */
export const ERRORS = {
  // Ours
  INTERNAL: row(internal, false, 'a bug in Godwit', 'report it, with the log lines before and after it'),
  // The person at the keyboard
  USAGE: row(usage, false, 'the command line is wrong', 'see --help of the command'),
  CONFIG_INVALID: row(usage, false, 'a configuration file is wrong', 'correct the field that the message names'),
  CONFIG_UNREADABLE: row(usage, false, 'a file cannot be read or written', 'check the path and its permissions'),
  VM_SPEC_INVALID: row(usage, false, 'a VM specification is wrong', 'correct the field that the message names'),
  // Names
  VM_UNKNOWN: row(refused, false, 'no VM of this name', 'see godwit vm list or godwit status'),
  VM_EXISTS: row(refused, false, 'a VM of this name exists at the site', 'choose another name or delete the other VM'),
  SERVICE_UNKNOWN: row(refused, false, 'the VM has no service of this name', 'add it under services: in the specification of the VM'),
  VM_PINNED: row(refused, false, 'the VM is pinned to its site', 'unpin it first (godwit mqtt command pin VM --off)'),
  VM_STATE: row(refused, false, 'the VM is in the wrong state for this', 'see godwit vm list'),
  SITE_UNKNOWN: row(refused, false, 'no site of this name', 'see godwit status'),
  SITE_OFFLINE: row(refused, true, 'the site is not connected to the gateway', 'start its node, or wait until it reconnects'),
  SITE_DUPLICATE: row(
    refused,
    true,
    'a newer node with this site id is connected',
    'stop one of the two nodes, or enrol one under another id',
  ),
  SITE_ONLINE: row(refused, false, 'the site is connected', 'stop its node first; revoke its certificate if it must not reconnect'),
  SITE_SAME: row(refused, false, 'the VM is already at that site', 'choose another site'),
  MIGRATION_UNKNOWN: row(refused, false, 'no migration of this id', 'see godwit status'),
  MIGRATION_BUSY: row(refused, true, 'the VM is already migrating', 'wait for that migration, or cancel it'),
  // Preflight: nothing has moved
  PREFLIGHT_QEMU_MISSING: row(refused, false, 'QEMU is not installed', 'install qemu-system-x86 (see godwit doctor)'),
  PREFLIGHT_QEMU_OLD: row(refused, false, 'this QEMU cannot migrate this VM live', 'use QEMU >= 9.0 or KVM, or migrate with --method cold'),
  PREFLIGHT_QEMU_DOWNGRADE: row(refused, false, 'the target has an older QEMU than the source', 'upgrade the target'),
  PREFLIGHT_ACCELERATOR: row(refused, false, 'the two sites have different accelerators', 'choose a site with the same accelerator'),
  PREFLIGHT_MACHINE: row(
    refused,
    false,
    'the QEMU of the site does not know the machine type',
    'choose a machine type that both QEMUs have',
  ),
  PREFLIGHT_CPU: row(refused, false, 'the site cannot run the CPU model', 'choose a CPU model that both sites can run'),
  PREFLIGHT_MEMORY: row(refused, true, 'not enough free memory at the site', 'free memory at the site or choose another site'),
  PREFLIGHT_DISK_SPACE: row(
    refused,
    true,
    'not enough free disk space at the target',
    'free disk space at the target or choose another site',
  ),
  PREFLIGHT_WRITABLE_DISK: row(refused, false, 'the VM writes to a disk in the images folder', 'use a disk of mode local'),
  PREFLIGHT_FILE_MISSING: row(refused, false, 'a file that the VM needs is missing', 'copy it into the images folder under the same name'),
  PREFLIGHT_FILE_CHANGED: row(
    refused,
    false,
    'a file that a running VM has open was replaced or changed',
    'restore the file, or stop and start the VM so that it opens the new one',
  ),
  PREFLIGHT_DEVICE: row(refused, false, 'the target cannot provide a device of the VM', 'create the device at the target or change the VM'),
  PREFLIGHT_DEVICE_BUSY: row(refused, false, 'a network device of the VM is in use by another process', 'give the VM its own tap device'),
  // QEMU
  QEMU_EXITED: row(failed, false, 'QEMU exited unexpectedly', "see the VM's qemu.log"),
  QEMU_COMMAND: row(failed, false, 'QEMU rejected a command', "see the message and the VM's qemu.log"),
  QEMU_TIMEOUT: row(timeout, true, 'QEMU did not answer in time', 'check whether the host is overloaded'),
  DISK_FULL: row(failed, true, 'the file system of a disk is full', 'free space on it, then retry'),
  DISK_IO: row(
    failed,
    false,
    'a disk cannot be read or written',
    'see the kernel log of the host (dmesg); replace the device if it is broken',
  ),
  DISK_MISMATCH: row(
    failed,
    false,
    "the target's copy of a disk differs from the source's record of it",
    'check the host of the target (dmesg), and its copy of the image (godwit image show); then migrate again',
  ),
  IMAGE_UNKNOWN: row(refused, false, 'no image of this name', 'see godwit image list'),
  IMAGE_EXISTS: row(refused, false, 'an image or file of this name exists with another content', 'choose another name'),
  IMAGE_INVALID: row(refused, false, 'a file cannot be used as an image', 'see the message; qemu-img info shows what the file is'),
  IMAGE_MISMATCH: row(
    refused,
    false,
    'a file has another checksum than expected',
    'download it again and compare the checksum with its source',
  ),
  IMAGE_CHANGED: row(
    refused,
    false,
    'the file of an image was changed or replaced',
    'import the original again under this name after removing it',
  ),
  IMAGE_IN_USE: row(refused, false, 'a VM uses the image', 'delete the VM first'),
  IMAGE_BUSY: row(refused, true, 'the image is being imported or removed', 'wait until that has ended'),
  IMAGE_CANCELLED: row(cancelled, true, 'the import of an image was cancelled', 'import it again when it is needed'),
  COPY_UNKNOWN: row(refused, false, 'no warm copy of this VM at this site', 'see godwit vm copies'),
  COPY_UNUSABLE: row(
    failed,
    true,
    'a warm copy of a disk at the target cannot be used, and was removed',
    'retry: all chunks of the disk travel',
  ),
  CLOUD_INIT_FAILED: row(failed, false, 'the seed disk of cloud-init cannot be made', 'see the message; install xorriso'),
  NBD_PROTOCOL: row(failed, false, 'a disk server violates the NBD protocol', 'use a supported QEMU version'),
  NBD_REFUSED: row(failed, false, 'a disk server rejected a request', 'see the message and the log of the node'),
  NBD_CLOSED: row(failed, true, 'a disk server has closed its connection', 'check whether QEMU or qemu-nbd has exited, then retry'),
  QEMU_UNTRUSTED: row(
    failed,
    false,
    'a socket in the folder of QEMU was not created by QEMU',
    'the guest may have escaped from QEMU: stop the VM, and keep its folder for the report',
  ),
  QEMU_STREAM: row(failed, false, 'the migration stream of QEMU does not match its format', 'report it with both QEMU versions'),
  QEMU_LOAD: row(failed, false, 'the target QEMU did not accept the state', "see the target VM's qemu.log"),
  // The guest
  GUEST_STOPPED: row(
    failed,
    false,
    'the guest has powered off; its VM is stopped at its site',
    'start it at that site with godwit vm start',
  ),
  GUEST_CRASHED: row(
    failed,
    false,
    'the guest has crashed (kernel panic, or a CPU error); its VM has failed at its site',
    'see serial.log in the folder of the VM, then start the VM at that site with godwit vm start',
  ),
  GUEST_SUSPENDED: row(
    refused,
    true,
    'the guest is suspended, and this QEMU cannot migrate a suspended guest',
    'wake it first with godwit vm wake',
  ),
  STOP_TIMEOUT: row(
    timeout,
    true,
    'the guest did not shut down in time; it keeps running',
    'allow more time with --timeout, or use --force: the guest then loses what it has not written to disk',
  ),
  // Migration
  MIGRATION_CANCELLED: row(cancelled, true, 'the migration was cancelled; the VM stays at the source', 'start it again when needed'),
  MIGRATION_TIMEOUT: row(timeout, true, 'the migration made no progress in time; the VM runs at the source', 'check the link, then retry'),
  MIGRATION_STUCK: row(
    timeout,
    true,
    'the migration stayed in one state for too long and was ended; before the hand-over the VM runs at the source',
    'find the state in the log; check the disk, QEMU and the link of that site, then retry',
  ),
  MIGRATION_FAILED: row(failed, true, 'the migration failed; the VM runs at the source', 'see the cause'),
  MIGRATION_LATE: row(refused, false, 'too late: the VM has been handed over', 'migrate it back'),
  MIGRATION_DOUBT: row(failed, false, 'it is not certain which site owns the VM', 'run godwit recover at both sites'),
  FENCING_REQUIRED: row(
    refused,
    false,
    'the VM may run at another site: a takeover needs proof that it cannot',
    'run godwit recover; the proof is a statement signed by the root (godwit root fence)',
  ),
  FENCING_INVALID: row(
    denied,
    false,
    'the fencing statement is not valid for this takeover',
    'run godwit recover: it shows what the statement must contain',
  ),
  MIGRATION_STATE: row(failed, false, 'a message is not valid in the state of the migration', 'report it with both logs'),
  MIGRATION_DENIED: row(
    denied,
    false,
    'the target does not accept this VM from this site',
    'change accept in the configuration of the target',
  ),
  RELEASE_DENIED: row(
    denied,
    false,
    'the source does not release this VM to that site',
    'change release in the configuration of the source',
  ),
  DOWNTIME_UNREACHABLE: row(
    refused,
    false,
    'the requested downtime cannot be met; the VM runs at the source',
    'request the downtime that the message predicts, or use --method cold',
  ),
  MIGRATION_REFUSED: row(refused, false, 'the other site rejected the migration', 'see the cause'),
  MANIFEST_MISMATCH: row(
    failed,
    true,
    'the received data differs from the sent data',
    'the relay or the link altered a stream: check both, then retry',
  ),
  EPOCH_STALE: row(refused, false, 'the message belongs to an earlier owner', 'no action needed: the newer owner keeps the VM'),
  // Commands over MQTT
  COMMAND_MALFORMED: row(
    refused,
    false,
    'a command does not match its schema',
    'correct the field that the message names; docs/reference/asyncapi.json has the schemas',
  ),
  COMMAND_TOO_LARGE: row(refused, false, 'a command is larger than its limit', 'remove the fields that are not in its schema'),
  COMMAND_FORGED: row(
    denied,
    false,
    'the signature of a command is missing, wrong, or of an unknown key',
    'sign it with a key that mqtt.commandKeys names',
  ),
  RESOURCE_FORBIDDEN: row(denied, false, 'this client may not use this VM', 'allow it in mec021.clients'),
  COMMAND_FORBIDDEN: row(denied, false, 'this key may not sign this command', 'use another key, or allow it in mqtt.commandKeys'),
  COMMAND_LATE: row(refused, true, 'a command arrived after its notAfter', 'send a new one; check both clocks'),
  COMMAND_RETAINED: row(refused, false, 'a retained command is never executed', 'publish it without the retain flag'),
  COMMAND_REUSED: row(refused, false, 'this commandId was used for another command', 'give every command a new id'),
  COMMAND_REQUIRED: row(
    denied,
    false,
    'the source moves this VM only by a signed command',
    'sign it (godwit migrate --key FILE), or let the gateway move it (release with unsigned: true at the source)',
  ),
  COMMAND_MISMATCH: row(denied, false, 'a plan differs from its signed command', 'sign a command for this VM, site and method'),
  RESOURCE_UNKNOWN: row(refused, false, 'no resource of this id', 'it may have expired: list the resources'),
  NOT_AVAILABLE: row(refused, false, 'this is not supported yet', 'do not use it'),
  BROKER_UNREACHABLE: row(unreachable, true, 'the MQTT broker does not answer', 'start it, or check its address and credentials'),
  BROKER_CLIENT_TAKEN: row(
    unreachable,
    true,
    "another client uses the gateway's client id at the MQTT broker",
    'give each gateway at the broker its own id, tenant or mqtt.clientId',
  ),
  // Wire
  FRAME_TOO_LARGE: row(failed, false, 'a frame is larger than its limit', 'both ends must run compatible versions'),
  FRAME_TYPE: row(failed, false, 'a frame of unknown type', 'both ends must run compatible versions'),
  FRAME_TRUNCATED: row(failed, true, 'a stream ended within a frame', 'check the link, then retry'),
  FRAME_MALFORMED: row(failed, false, 'the content of a frame does not match its type', 'both ends must run compatible versions'),
  VERSION_UNSUPPORTED: row(refused, false, 'the other side uses another protocol version', 'upgrade the older side'),
  LIMIT_EXCEEDED: row(refused, true, 'a limit was reached', 'the message names the limit'),
  // Crypto
  CERT_UNTRUSTED: row(denied, false, 'the certificate is not signed by the trusted root', 'enrol the site with the right root'),
  CERT_EXPIRED: row(denied, false, 'the certificate has expired or is not valid yet', 'renew it with godwit enrol; check the clock'),
  CERT_REVOKED: row(denied, false, 'the certificate is revoked', 'enrol the site again with new keys'),
  CERT_MALFORMED: row(denied, false, 'the certificate cannot be read', 'enrol the site again'),
  REVOCATION_STALE: row(denied, true, 'the revocation list is too old', 'run godwit root revoke, and copy the list to the gateway'),
  REVOCATION_MISSING: row(
    denied,
    true,
    'this process has no revocation list',
    'copy the list that godwit root create wrote to the gateway',
  ),
  HANDSHAKE_FAILED: row(
    denied,
    false,
    'the end-to-end handshake failed',
    'the keys or the plan differ between the sites: check the gateway for tampering',
  ),
  DECRYPT_FAILED: row(failed, true, 'a record could not be decrypted', 'the record was altered in transit: check the relay, then retry'),
  AUTH_FAILED: row(denied, false, 'the other side could not prove its identity', 'check certificates and the gateway address'),
  TOKEN_INVALID: row(denied, false, 'the token is wrong, expired or already used', 'use the token of this gateway, or request a new one'),
  // Transport
  ENGINE_UNAVAILABLE: row(
    unreachable,
    false,
    'the transport engine cannot be loaded on this host',
    'use transport: auto, which chooses another engine',
  ),
  CONNECT_FAILED: row(unreachable, true, 'the connection could not be established', 'check address, port and firewall'),
  CONNECT_TIMEOUT: row(unreachable, true, 'the other side did not answer in time', 'check address, port and firewall'),
  CONNECTION_LOST: row(unreachable, true, 'the connection was lost', 'check the link, then retry'),
  STREAM_RESET: row(failed, true, 'the other side reset the stream', 'see the log of the other side'),
  GATEWAY_UNREACHABLE: row(unreachable, true, 'the gateway does not answer', 'start it, or check --gateway and its token'),
  NODE_UNREACHABLE: row(unreachable, true, 'the node does not answer on its socket', 'start it, or check --socket'),
  TIMEOUT: row(timeout, true, 'an operation took too long', 'retry; the message names the operation'),
  // Store
  STORE_LOCKED: row(usage, false, 'another process has this state folder open', 'stop the other process'),
  STORE_FAILED: row(internal, true, 'the state database failed', 'check disk space and permissions'),
  // Setup
  SETUP_NEEDED: row(usage, false, 'a required program or package is not installed', 'install what the message names'),
} as const satisfies Record<string, ErrorRow>

export type ErrorCode = keyof typeof ERRORS

/** The one error class. `message` says what happened, with names; `hint` says what to do. */
export class GodwitError extends Error {
  readonly code: ErrorCode
  readonly retryable: boolean
  readonly hint: string

  constructor(code: ErrorCode, message?: string, options: { cause?: unknown; hint?: string } = {}) {
    super(message ?? ERRORS[code].meaning, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'GodwitError'
    this.code = code
    this.retryable = ERRORS[code].retryable
    this.hint = options.hint ?? ERRORS[code].hint
  }

  get exitCode(): number {
    return ERRORS[this.code].exit
  }

  /** The form on the wire and in `--json`: no stack, no cause object. */
  toJSON(): ErrorBody {
    return { code: this.code, message: this.message.slice(0, TEXT_LENGTH_MAX), hint: this.hint.slice(0, TEXT_LENGTH_MAX) }
  }
}

/**
 * Longer texts are cut before sending: a frame has a limit, and the code must arrive. The receiver's schema has the
 * same number.
 */
const TEXT_LENGTH_MAX = 4096

export type ErrorBody = { code: string; message: string; hint?: string | undefined }

/** Rebuilds an error that came over the wire; an unknown code becomes INTERNAL with the code in its message. */
export function fromBody(body: ErrorBody): GodwitError {
  const known = Object.hasOwn(ERRORS, body.code)
  return new GodwitError(known ? (body.code as ErrorCode) : 'INTERNAL', known ? body.message : `${body.code}: ${body.message}`, {
    ...(body.hint === undefined ? {} : { hint: body.hint }),
  })
}

/** Any thrown value as a GodwitError: ours unchanged, others wrapped with `code`. */
export function toGodwitError(error: unknown, code: ErrorCode = 'INTERNAL'): GodwitError {
  if (error instanceof GodwitError) return error
  return new GodwitError(code, error instanceof Error ? error.message : String(error), { cause: error })
}

/** Whether a thrown value is a GodwitError with this code. */
export const hasCode = (error: unknown, code: ErrorCode): boolean => error instanceof GodwitError && error.code === code
