// Typed QMP commands (QEMU QMP Reference Manual). Enters: a client. Leaves: one function for each command, with units
// in the names. Always holds: fields that a QEMU does not send are undefined, and unknown statuses pass through as text
// (QEMU 7.2 to 10.x differ).
import type { ExecuteOptions, QmpClient } from './client.ts'
import type { QmpObject } from './codec.ts'

/**
 * QEMU's RunState: 'running', 'paused', 'inmigrate', 'postmigrate', 'finish-migrate', 'prelaunch', 'shutdown',
 * 'suspended', 'guest-panicked', 'internal-error' ...
 */
type RunStatus = { status: string; running: boolean }

type MigrationRam = {
  transferredBytes: number
  totalBytes: number
  /** Absent near the end in some versions. */
  remainingBytes: number | undefined
  zeroPages: number
  normalPages: number
  /** Completed passes over the dirty bitmap: 1 during the first round. */
  dirtySyncCount: number | undefined
  dirtyPagesPerSecond: number | undefined
  megabitsPerSecond: number | undefined
  pageBytes: number
}

/**
 * query-migrate. `status` is 'none' if no migration was started; others are QEMU's MigrationStatus, unknown ones
 * unchanged.
 */
export type MigrationInfo = {
  status: string
  totalMs: number | undefined
  /** QEMU's own downtime, from stopping the guest to the end of its stream: at the local socket, not at the target. */
  downtimeMs: number | undefined
  expectedDowntimeMs: number | undefined
  setupMs: number | undefined
  ram: MigrationRam | undefined
  /** Share of time that the guest's CPUs are throttled, per cent; absent: none. */
  throttlePercent?: number | undefined
  errorText: string | undefined
  blockedReasons: string[]
}

type MigrationParameters = {
  /** 0: unlimited. */
  maxBandwidthBytesPerSecond?: number
  downtimeLimitMs?: number
  /** QEMU 8.2+; omitted for older ones. */
  availSwitchoverBandwidthBytesPerSecond?: number
  /** 0: no gratuitous ARP when the load ends (it would go out before the hand-over). */
  announceRounds?: number
  /** Other parameters, by QEMU's names. */
  other?: QmpObject
}

type MachineInfo = { name: string; alias: string | undefined; deprecated: boolean; maxVcpus: number }
type CpuInfo = {
  name: string /** undefined: unknown. Not empty: this host lacks these features. */
  unavailableFeatures: string[] | undefined
}

export type QmpCommands = ReturnType<typeof qmpCommands>

/** Typed commands over a client. Each throws the errors of `client.execute`. */
export function qmpCommands(client: QmpClient) {
  const run = (command: string, args?: QmpObject, options?: ExecuteOptions) => client.execute(command, args, options)
  const since = (major: number, minor: number) =>
    client.version.major > major || (client.version.major === major && client.version.minor >= minor)
  return {
    queryStatus: async (options?: ExecuteOptions): Promise<RunStatus> => {
      const answer = await run('query-status', undefined, options)
      return { status: String(answer.status), running: answer.running === true }
    },
    queryMigrate: async (options?: ExecuteOptions): Promise<MigrationInfo> => migrationInfo(await run('query-migrate', undefined, options)),
    /** Starts an outgoing migration to `uri`, e.g. `unix:/path`; returns at once. */
    migrate: async (uri: string, options?: ExecuteOptions): Promise<void> => void (await run('migrate', { uri }, options)),
    /**
     * Starts listening at `uri` (QEMU started with -incoming defer). From 9.1 on a failed load leaves QEMU alive;
     * before, it exits.
     */
    migrateIncoming: async (uri: string, options?: ExecuteOptions): Promise<void> =>
      void (await run('migrate-incoming', { uri, ...(since(9, 1) ? { 'exit-on-error': false } : {}) }, options)),
    migrateCancel: async (options?: ExecuteOptions): Promise<void> => void (await run('migrate_cancel', undefined, options)),
    /** Continues from the given status (pause-before-switchover stops at 'pre-switchover'). */
    migrateContinue: async (state = 'pre-switchover', options?: ExecuteOptions): Promise<void> =>
      void (await run('migrate-continue', { state }, options)),
    setCapabilities: async (wanted: Record<string, boolean>, options?: ExecuteOptions): Promise<void> => {
      const capabilities = Object.entries(wanted).map(([capability, state]) => ({ capability, state }))
      await run('migrate-set-capabilities', { capabilities }, options)
    },
    setParameters: async (wanted: MigrationParameters, options?: ExecuteOptions): Promise<void> => {
      await run('migrate-set-parameters', parameterArguments(wanted, since(8, 2)), options)
    },
    stop: async (options?: ExecuteOptions): Promise<void> => void (await run('stop', undefined, options)),
    cont: async (options?: ExecuteOptions): Promise<void> => void (await run('cont', undefined, options)),
    /**
     * Acquires the locks of all disks, which an incoming VM does not have yet; QEMU_COMMAND if another process has one.
     * Before QEMU 10 only `cont` does it.
     */
    activateDisks: async (options?: ExecuteOptions): Promise<void> => {
      if (since(10, 0)) await run('blockdev-set-active', { active: true }, options)
    },
    /** Ends QEMU at once, without a shutdown of the guest. */
    quit: async (options?: ExecuteOptions): Promise<void> => void (await run('quit', undefined, options)),
    /** The ACPI power button. */
    systemPowerdown: async (options?: ExecuteOptions): Promise<void> => void (await run('system_powerdown', undefined, options)),
    /** Wakes a suspended guest (ACPI S3). QEMU_COMMAND if it is not suspended. */
    systemWakeup: async (options?: ExecuteOptions): Promise<void> => void (await run('system_wakeup', undefined, options)),
    /** Gratuitous ARP/RARP from every NIC, so that switches learn the new location of the VM. */
    announceSelf: async (rounds = 5, options?: ExecuteOptions): Promise<void> =>
      void (await run('announce-self', { initial: 50, max: 550, rounds, step: 100 }, options)),
    /** A command of the human monitor, for functions that QMP lacks. Returns its text output; empty on success. */
    humanMonitor: async (line: string, options?: ExecuteOptions): Promise<string> =>
      String(await client.execute<string>('human-monitor-command', { 'command-line': line }, options)),
    queryVersion: () => client.version,
    /** Writes guest-physical memory to a file; the path is for QEMU's user. */
    pmemsave: async (addressBytes: number, sizeBytes: number, filename: string, options?: ExecuteOptions): Promise<void> =>
      void (await run('pmemsave', { val: addressBytes, size: sizeBytes, filename }, { timeoutMs: 60_000, ...options })),
    queryMemoryBytes: async (options?: ExecuteOptions): Promise<number> =>
      Number((await run('query-memory-size-summary', undefined, options))['base-memory']),
    queryMachines: async (options?: ExecuteOptions): Promise<MachineInfo[]> =>
      (await client.execute<QmpObject[]>('query-machines', undefined, options)).map(machineInfo),
    queryCpuDefinitions: async (options?: ExecuteOptions): Promise<CpuInfo[]> =>
      (await client.execute<QmpObject[]>('query-cpu-definitions', undefined, options)).map(cpuInfo),
  }
}

const optionalNumber = (value: unknown): number | undefined => (typeof value === 'number' ? value : undefined)

function migrationInfo(answer: QmpObject): MigrationInfo {
  const ram = answer.ram as QmpObject | undefined
  const blocked = answer['blocked-reasons']
  return {
    status: typeof answer.status === 'string' ? answer.status : 'none',
    totalMs: optionalNumber(answer['total-time']),
    downtimeMs: optionalNumber(answer.downtime),
    expectedDowntimeMs: optionalNumber(answer['expected-downtime']),
    setupMs: optionalNumber(answer['setup-time']),
    ram: ram && {
      transferredBytes: Number(ram.transferred ?? 0),
      totalBytes: Number(ram.total ?? 0),
      remainingBytes: optionalNumber(ram.remaining),
      zeroPages: Number(ram.duplicate ?? 0),
      normalPages: Number(ram.normal ?? 0),
      dirtySyncCount: optionalNumber(ram['dirty-sync-count']),
      dirtyPagesPerSecond: optionalNumber(ram['dirty-pages-rate']),
      megabitsPerSecond: optionalNumber(ram.mbps),
      pageBytes: Number(ram['page-size'] ?? 4096),
    },
    throttlePercent: optionalNumber(answer['cpu-throttle-percentage']),
    errorText: typeof answer['error-desc'] === 'string' ? answer['error-desc'] : undefined,
    blockedReasons: Array.isArray(blocked) ? blocked.map(String) : [],
  }
}

function parameterArguments(wanted: MigrationParameters, hasSwitchoverBandwidth: boolean): QmpObject {
  const args: QmpObject = { ...wanted.other }
  if (wanted.maxBandwidthBytesPerSecond !== undefined) args['max-bandwidth'] = Math.round(wanted.maxBandwidthBytesPerSecond)
  if (wanted.downtimeLimitMs !== undefined) args['downtime-limit'] = Math.round(wanted.downtimeLimitMs)
  if (wanted.announceRounds !== undefined) args['announce-rounds'] = wanted.announceRounds
  if (wanted.availSwitchoverBandwidthBytesPerSecond !== undefined && hasSwitchoverBandwidth)
    args['avail-switchover-bandwidth'] = Math.round(wanted.availSwitchoverBandwidthBytesPerSecond)
  return args
}

const machineInfo = (item: QmpObject): MachineInfo => ({
  name: String(item.name),
  alias: typeof item.alias === 'string' ? item.alias : undefined,
  deprecated: item.deprecated === true,
  maxVcpus: Number(item['cpu-max'] ?? 1),
})

const cpuInfo = (item: QmpObject): CpuInfo => {
  const missing = item['unavailable-features']
  return { name: String(item.name), unavailableFeatures: Array.isArray(missing) ? missing.map(String) : undefined }
}
