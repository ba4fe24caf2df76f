// The definition of a command: its name, options and help in one value, which the parser, --help and the tests all
// read.
import type { Io } from './io.ts'

export type OptionSpec = { help: string; required?: boolean; short?: string } & (
  | { kind: 'flag' }
  | { kind: 'text' | 'path' | 'duration' | 'size'; value: string }
  | { kind: 'integer'; value: string; min: number; max: number }
  | { kind: 'choice'; choices: readonly string[] }
)
export type OptionSpecs = Record<string, OptionSpec>

/** The value that the parser returns for an option: ms for durations, bytes for sizes. */
type OptionValue<S extends OptionSpec> = S extends { kind: 'flag' }
  ? boolean
  : S extends { kind: 'integer' | 'duration' | 'size' }
    ? number
    : S extends { kind: 'choice'; choices: readonly (infer C)[] }
      ? C
      : string

/** Flags and required options are always set; other options may be undefined. */
type OptionValues<O extends OptionSpecs> = {
  [K in keyof O]: O[K] extends { kind: 'flag' } | { required: true } ? OptionValue<O[K]> : OptionValue<O[K]> | undefined
}

type Positional = { name: string; help: string; optional?: boolean; many?: boolean }

type Context<O extends OptionSpecs = OptionSpecs> = { options: OptionValues<O>; args: string[]; io: Io }

export type CliCommand = {
  /** One word or two, such as `root sign`. */
  name: string
  summary: string
  /** Paragraphs below the usage line. */
  details?: string
  positionals: Positional[]
  options: OptionSpecs
  examples: string[]
  /** `run` receives all arguments after the name unparsed (it has its own --help). */
  isPassThrough?: boolean
  /** Returns the exit code; throws GodwitError. */
  run(context: Context): Promise<number>
}

/** Creates a command; `run` has the types of its own options. */
export function command<const O extends OptionSpecs>(
  spec: Omit<CliCommand, 'options' | 'run' | 'positionals'> & {
    positionals?: Positional[]
    options?: O
    run(context: Context<O>): Promise<number>
  },
): CliCommand {
  const { positionals = [], options = {} as O, run, ...rest } = spec
  return { ...rest, positionals, options, run: context => run(context as unknown as Context<O>) }
}

/** Options that many commands share. */
export const shared = {
  json: { kind: 'flag', help: 'print one JSON value on stdout, units in the names; errors as {"error": {code, message, hint}}' },
  socket: { kind: 'path', value: 'FILE', help: "the node's unix socket (GODWIT_SOCKET)" },
  config: { kind: 'path', value: 'FILE', help: 'configuration file (GODWIT_CONFIG)' },
} as const satisfies OptionSpecs

/** How a command that asks the gateway reaches it (gatewayTarget of config.ts). */
export const gatewayOptions = {
  gateway: { kind: 'text', value: 'URL', help: "the gateway's admin API (GODWIT_GATEWAY; default http://127.0.0.1:7445)" },
  'token-file': {
    kind: 'path',
    value: 'FILE',
    help: "file with the gateway's admin token (GODWIT_TOKEN_FILE, or the token itself in GODWIT_TOKEN)",
  },
  'gateway-ca': {
    kind: 'path',
    value: 'FILE',
    help: "certificate authority (PEM) for an https:// gateway (GODWIT_GATEWAY_CA; default: the system's authorities)",
  },
} as const satisfies OptionSpecs
