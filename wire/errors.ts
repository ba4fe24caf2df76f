// Every error that leaves Godwit carries a stable code from this table. docs/PROTOCOL.md shows the same table and a test compares them.
// Enters: a code, facts for the message, perhaps a cause. Leaves: a GodwitError. A code never changes its meaning.

/** Process exit codes of the `godwit` command (documented in the README). */
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
  INTERNAL: row(internal, false, 'a bug in Godwit', 'report it with the log around it'),
  // The person at the keyboard
  USAGE: row(usage, false, 'the command line is wrong', 'see --help of the command'),
  CONFIG_INVALID: row(usage, false, 'a configuration file is wrong', 'mend the named field'),
  CONFIG_UNREADABLE: row(usage, false, 'a file cannot be read or written', 'check the path and its permissions'),
  VM_SPEC_INVALID: row(usage, false, 'a VM specification is wrong', 'mend the named field'),
  // Names
  VM_UNKNOWN: row(refused, false, 'no VM of this name', 'see godwit vm list or godwit status'),
  VM_EXISTS: row(refused, false, 'a VM of this name exists there', 'choose another name or delete the other VM'),
  SERVICE_UNKNOWN: row(refused, false, 'the VM has no service of this name', 'name it under services: in the specification of the VM'),
  VM_PINNED: row(refused, false, 'the VM is pinned to its site', 'unpin it first (godwit mqtt command pin VM --off)'),
  VM_STATE: row(refused, false, 'the VM is in the wrong state for this', 'see godwit vm list'),
  SITE_UNKNOWN: row(refused, false, 'no site of this name', 'see godwit status'),
  SITE_OFFLINE: row(refused, true, 'the site is not connected to the gateway', 'start its node, or wait until it is back'),
  SITE_DUPLICATE: row(
    refused,
    true,
    'a newer node with this site id is connected',
    'stop one of the two nodes, or enrol one under another id',
  ),
  SITE_SAME: row(refused, false, 'the VM is at that site already', 'choose another site'),
  MIGRATION_UNKNOWN: row(refused, false, 'no migration of this id', 'see godwit status'),
  MIGRATION_BUSY: row(refused, true, 'the VM is migrating already', 'wait for that migration, or cancel it'),
  // Preflight: nothing has moved
  PREFLIGHT_QEMU_MISSING: row(refused, false, 'QEMU is not installed', 'install qemu-system-x86 (see godwit doctor)'),
  PREFLIGHT_QEMU_OLD: row(refused, false, 'this QEMU cannot migrate this VM live', 'use QEMU >= 9.0 or KVM, or migrate with --method cold'),
  PREFLIGHT_QEMU_DOWNGRADE: row(refused, false, 'the target has an older QEMU than the source', 'upgrade the target'),
  PREFLIGHT_ACCELERATOR: row(refused, false, 'the two sites have different accelerators', 'choose a site with the same accelerator'),
  PREFLIGHT_MACHINE: row(refused, false, 'the target does not know the machine type', 'choose a machine type that both QEMUs have'),
  PREFLIGHT_CPU: row(refused, false, 'the target cannot run the CPU model', 'choose a CPU model that both sites can run'),
  PREFLIGHT_MEMORY: row(refused, true, 'not enough free memory at the target', 'free memory there or choose another site'),
  PREFLIGHT_DISK_SPACE: row(refused, true, 'not enough free disk at the target', 'free disk there or choose another site'),
  PREFLIGHT_WRITABLE_DISK: row(refused, false, 'the VM has a writable local disk', 'use a read-only, ephemeral or shared-storage disk'),
  PREFLIGHT_FILE_MISSING: row(refused, false, 'a file that the VM needs is missing', 'copy it to the same name in the images folder'),
  PREFLIGHT_DEVICE: row(refused, false, 'a device cannot be had at the target', 'create it there or change the VM'),
  // QEMU
  QEMU_EXITED: row(failed, false, 'QEMU ended by itself', "see the VM's qemu.log"),
  QEMU_COMMAND: row(failed, false, 'QEMU refused a command', "see the message and the VM's qemu.log"),
  QEMU_TIMEOUT: row(timeout, true, 'QEMU did not answer in time', 'see whether the host is overloaded'),
  QEMU_UNTRUSTED: row(
    failed,
    false,
    'a socket in the folder of QEMU is not what QEMU made',
    'the VM may have broken out of QEMU: stop it, and keep its folder for the report',
  ),
  QEMU_STREAM: row(failed, false, 'the migration stream of QEMU is not what the format says', 'report it with both QEMU versions'),
  QEMU_LOAD: row(failed, false, 'the target QEMU did not accept the state', "see the target VM's qemu.log"),
  // Migration
  MIGRATION_CANCELLED: row(cancelled, true, 'the migration was cancelled; the VM runs at the source', 'start it again when wanted'),
  MIGRATION_TIMEOUT: row(timeout, true, 'the migration made no progress in time; the VM runs at the source', 'check the link, then retry'),
  MIGRATION_FAILED: row(failed, true, 'the migration failed; the VM runs at the source', 'see the cause'),
  MIGRATION_LATE: row(refused, false, 'too late: the VM has been handed over, forward only', 'migrate it back'),
  MIGRATION_DOUBT: row(failed, false, 'it is not certain which site owns the VM', 'see godwit recover at both sites'),
  FENCING_REQUIRED: row(
    refused,
    false,
    'the VM may run at another site: taking it over needs proof that it cannot',
    'see godwit recover; the proof is a statement signed by the root (godwit root fence)',
  ),
  FENCING_INVALID: row(denied, false, 'the fencing statement is not good for this', 'see godwit recover for what it must say'),
  MIGRATION_STATE: row(failed, false, 'a message does not fit the state of the migration', 'report it with both logs'),
  MIGRATION_DENIED: row(
    denied,
    false,
    'the target does not accept this VM from this site',
    'see accept in the configuration of the target',
  ),
  DOWNTIME_UNREACHABLE: row(
    refused,
    false,
    'the downtime that was asked for cannot be kept; the VM runs at the source',
    'ask for the one that the message predicts, or use --method cold',
  ),
  MIGRATION_REFUSED: row(refused, false, 'the other site refused', 'see the cause'),
  MANIFEST_MISMATCH: row(failed, true, 'what arrived is not what was sent', 'the relay or link altered streams: check them, then retry'),
  EPOCH_STALE: row(refused, false, 'the message belongs to an earlier owner', 'nothing to do; the newer owner stands'),
  // Commands over MQTT
  COMMAND_MALFORMED: row(
    refused,
    false,
    'a command is not what its schema says',
    'mend the named field; docs/asyncapi.json has the schemas',
  ),
  COMMAND_TOO_LARGE: row(refused, false, 'a command is larger than its limit', 'leave out what is not in its schema'),
  COMMAND_FORGED: row(
    denied,
    false,
    'the signature of a command is missing, wrong, or of an unknown key',
    'sign it with a key that mqtt.commandKeys names',
  ),
  COMMAND_FORBIDDEN: row(denied, false, 'this key may not give this command', 'use another key, or allow it in mqtt.commandKeys'),
  COMMAND_LATE: row(refused, true, 'a command came after its notAfter', 'send a new one; check both clocks'),
  COMMAND_RETAINED: row(refused, false, 'a retained command is never carried out', 'publish it without the retain flag'),
  COMMAND_REUSED: row(refused, false, 'this commandId was used for another command', 'give every command an id of its own'),
  RESOURCE_UNKNOWN: row(refused, false, 'no resource of this id', 'it may have expired: ask for the list'),
  NOT_AVAILABLE: row(refused, false, 'this cannot be done yet', 'leave it out'),
  BROKER_UNREACHABLE: row(unreachable, true, 'the MQTT broker does not answer', 'start it, or check its address and credentials'),
  // Wire
  FRAME_TOO_LARGE: row(failed, false, 'a frame is larger than its limit', 'both ends must run compatible versions'),
  FRAME_TYPE: row(failed, false, 'a frame of unknown type', 'both ends must run compatible versions'),
  FRAME_TRUNCATED: row(failed, true, 'a stream ended within a frame', 'check the link, then retry'),
  FRAME_MALFORMED: row(failed, false, 'the content of a frame is not what its type says', 'both ends must run compatible versions'),
  VERSION_UNSUPPORTED: row(refused, false, 'the other side speaks another protocol version', 'upgrade the older one'),
  LIMIT_EXCEEDED: row(refused, true, 'a limit was reached', 'see the message for which one'),
  // Crypto
  CERT_UNTRUSTED: row(denied, false, 'the certificate is not signed by our root', 'enrol the site with the right root'),
  CERT_EXPIRED: row(denied, false, 'the certificate has expired or is not valid yet', 'renew it with godwit enrol; check the clock'),
  CERT_REVOKED: row(denied, false, 'the certificate is revoked', 'enrol the site anew'),
  CERT_MALFORMED: row(denied, false, 'the certificate cannot be read', 'enrol the site anew'),
  REVOCATION_STALE: row(denied, true, 'the revocation list is too old', 'publish a fresh list'),
  HANDSHAKE_FAILED: row(denied, false, 'the end-to-end handshake failed', 'keys or plan differ between the sites: someone altered them'),
  DECRYPT_FAILED: row(failed, true, 'a record could not be opened', 'it was altered on the way: check the relay, then retry'),
  AUTH_FAILED: row(denied, false, 'the other side is not who it says', 'check certificates and gateway address'),
  TOKEN_INVALID: row(denied, false, 'the token is wrong or used up', 'use the token of this gateway, or ask for a new one'),
  // Transport
  ENGINE_UNAVAILABLE: row(unreachable, false, 'the transport engine cannot load here', 'choose another with transport: auto'),
  CONNECT_FAILED: row(unreachable, true, 'no connection could be made', 'check address, port and firewall'),
  CONNECT_TIMEOUT: row(unreachable, true, 'the other side did not answer in time', 'check address, port and firewall'),
  CONNECTION_LOST: row(unreachable, true, 'the connection was lost', 'check the link, then retry'),
  STREAM_RESET: row(failed, true, 'the other side reset the stream', 'see its log'),
  GATEWAY_UNREACHABLE: row(unreachable, true, 'the gateway does not answer', 'start it, or check --gateway and its token'),
  NODE_UNREACHABLE: row(unreachable, true, 'the node does not answer on its socket', 'start it, or check --socket'),
  TIMEOUT: row(timeout, true, 'something took too long', 'retry; see the log for what was waited for'),
  // Store
  STORE_LOCKED: row(usage, false, 'another process has this state folder open', 'stop the other one'),
  STORE_FAILED: row(internal, true, 'the state database failed', 'check disk space and permissions'),
  // Setup
  SETUP_NEEDED: row(usage, false, 'something this needs is not installed', 'install what the message names'),
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

  /** What crosses the wire and what `--json` prints: no stack, no cause object. */
  toJSON(): ErrorBody {
    return { code: this.code, message: this.message.slice(0, TEXT_LENGTH_MAX), hint: this.hint.slice(0, TEXT_LENGTH_MAX) }
  }
}

/** Longer texts are cut when they leave: a frame has its limit, and the code must arrive. The receiver's schema has the same number. */
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
