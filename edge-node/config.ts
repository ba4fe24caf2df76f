// The node's configuration as it must be once file, environment and flags are merged (cli/config.ts does that). No IO
// here.
import { parseSize, SIZE_FORM } from '../ops/units.ts'
import { CommandKeys } from '../wire/command.ts'
import { Id } from '../wire/control.ts'
import { z } from '../wire/schema.ts'

const path = z.string({ error: 'must be a path' }).min(1, 'must be a path')
const isPort = (value: unknown) => Number.isInteger(value) && Number(value) >= 1 && Number(value) <= 65_535
const portOrOff = z.custom<number | 'off'>(value => value === 'off' || isPort(value), 'must be a port from 1 to 65535, or off')
const size = z.union([z.string(), z.number()], { error: `must be ${SIZE_FORM}` }).transform((value, context) => {
  const bytes = typeof value === 'number' ? value : parseSize(value)
  if (bytes !== undefined && Number.isSafeInteger(bytes) && bytes >= 0) return bytes
  context.addIssue({ code: 'custom', message: `must be ${SIZE_FORM}` })
  return z.NEVER
})

const seconds = (min: number, max: number) => {
  const error = `must be a number of seconds from ${min} to ${max}`
  return z.number({ error }).min(min, error).max(max, error)
}

const days = (min: number, max: number) => {
  const error = `must be a number of days from ${min} to ${max}`
  return z.number({ error }).min(min, error).max(max, error)
}

const pattern = z.string().regex(/^[a-z0-9*-]{1,64}$/, 'must be a name, in which * stands for any characters')
const ReleaseRule = z.strictObject({
  vms: z.array(pattern).min(1).max(64),
  to: z.array(pattern).min(1).max(64),
  /**
   * With command keys: these may move without a signed command, as the gateway's policy or an operator there decides.
   */
  unsigned: z.boolean().optional(),
})
const AcceptRule = z.strictObject({ from: z.array(pattern).min(1).max(64), vms: z.array(pattern).min(1).max(64) })

const isInside = (dir: string, other: string): boolean => `${dir}/`.startsWith(`${other.replace(/\/+$/, '')}/`)

export const NodeConfig = z
  .strictObject({
    /** Name in the site's certificate. */
    site: Id,
    stateDir: path,
    /** Sockets and other things that end with a reboot. */
    runDir: path,
    /** Kernels, initrds and disks that VM specifications name. */
    imagesDir: path,
    /** Shared disks: one file system that all sites mount which run these VMs. Absent: no VM here has a shared disk. */
    sharedDir: path.optional(),
    gateway: z.strictObject({
      /** Name that the gateway's certificate must have. */
      id: Id,
      host: z.string({ error: 'must be a host name or address' }).trim().regex(/^\S+$/, 'must be a host name or address'),
      /** `off`: this engine is never tried. */
      ports: z.strictObject({ quic: portOrOff, tls: portOrOff, webtransport: portOrOff }),
    }),
    transport: z.enum(['auto', 'quic', 'tls', 'webtransport']),
    identity: z.strictObject({ keys: path, certificate: path, root: path }),
    api: z.strictObject({ socket: path }),
    log: z.strictObject({ level: z.enum(['debug', 'info', 'warn', 'error']), format: z.enum(['json', 'text']) }),
    limits: z.strictObject({
      /** Bytes; never given to VMs. */
      memoryReserve: size,
      /**
       * How long a migration waits for a link that was lost: while the guest runs, and while it stands still for the
       * switch-over.
       */
      reconnectSeconds: seconds(1, 3600).default(30),
      switchoverSeconds: seconds(0.1, 60).default(2),
      /**
       * What trying out a fresh connection to the gateway may take, each way, so that migrations begin at full rate; at
       * most every 10 minutes. 0: never.
       */
      warmUp: size.default(4 * 1024 * 1024),
      /** How long the disks of a VM that has left are kept as a warm copy. */
      copyDays: days(0.01, 3650).default(7),
    }),
    qemu: z
      .strictObject({
        /**
         * The users that VMs' QEMUs run as, one each, never shared. auto: 1000 users from 70000 on where the node is
         * root (with a warning where it is and cannot), the node's own user elsewhere. off: the node's own user. A
         * range: as told, or the node does not start.
         */
        users: z.union(
          [z.enum(['auto', 'off']), z.strictObject({ from: z.int().min(1000).max(2_000_000_000), count: z.int().min(1).max(65_536) })],
          { error: 'must be auto, off, or { from, count }' },
        ),
      })
      .optional(),
    /**
     * Which VMs may come here, and from where; the first rule that fits lets one in. Absent: all of our root's sites
     * may send any.
     */
    accept: z.array(AcceptRule).max(64).optional(),
    /**
     * Which VMs may leave, and to where; the first rule that fits lets one go. Absent: any VM may go to any site of our
     * root.
     */
    release: z.array(ReleaseRule).max(64).optional(),
    /**
     * Keys of commanders. With any, a VM leaves only by a command that one of them signed, or by a release rule with
     * unsigned: true. None: the gateway's word is enough, within the release rules.
     */
    commandKeys: CommandKeys.default({}),
    /** The tenant that commands are signed for (mqtt.tenant of the gateway). */
    commandTenant: Id.default('main'),
    /**
     * File with the root's signed revocation list. It need not be there: the gateway hands the list on. The one with
     * the higher number is in force.
     */
    revocations: path.optional(),
  })
  .superRefine(({ sharedDir, imagesDir, stateDir, runDir }, context) => {
    // A disk that is written at another site must be no file that this one takes for unchanging, or for its own.
    const own = Object.entries({ imagesDir, stateDir, runDir }).find(([, dir]) => sharedDir !== undefined && isInside(sharedDir, dir))
    if (own)
      context.addIssue({
        code: 'custom',
        path: ['sharedDir'],
        message: `must not be inside ${own[0]} (${own[1]}): other sites share this folder`,
      })
  })
export type NodeConfig = z.output<typeof NodeConfig>

/** What the file may leave out; `site` and `gateway.host` it may not. */
export const nodeDefaults = ({ configDir, stateDir, runDir }: { configDir: string; stateDir: string; runDir: string }) => ({
  stateDir: `${stateDir}/node`,
  runDir,
  imagesDir: `${stateDir}/images`,
  gateway: { id: 'gateway', ports: { quic: 7443, tls: 7443, webtransport: 7444 } },
  transport: 'auto',
  identity: { keys: `${configDir}/site.keys`, certificate: `${configDir}/site.cert`, root: `${configDir}/root.pub` },
  revocations: `${configDir}/revocations`,
  api: { socket: `${runDir}/node.sock` },
  log: { level: 'info', format: 'json' },
  limits: { memoryReserve: '256MiB', reconnectSeconds: 30, switchoverSeconds: 2, warmUp: '4MiB', copyDays: 7 },
  qemu: { users: 'auto' },
  commandKeys: {},
  commandTenant: 'main',
})
