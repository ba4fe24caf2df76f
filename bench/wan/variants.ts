// The compared variants of migration. Pure.

export type Congestion = 'cubic' | 'bbr'
export type Variant = { name: string } & (
  | { kind: 'godwit'; congestion: Congestion; method: 'live' | 'cold' }
  | { kind: 'qemu'; congestion: Congestion; multifdLevel?: number; isXbzrle?: boolean }
  /** Stopped, then sent through one zstd process over one TCP connection. */
  | { kind: 'cold'; congestion: Congestion; level: number }
)

/** The same number as Godwit's streams. */
export const MULTIFD_CHANNELS = 4
export const XBZRLE_CACHE_BYTES = 64 * 1024 * 1024

const both = (make: (congestion: Congestion) => Variant): Variant[] => [make('bbr'), make('cubic')]

export const VARIANTS: readonly Variant[] = [
  { name: 'godwit', kind: 'godwit', congestion: 'bbr', method: 'live' },
  { name: 'godwit-cubic', kind: 'godwit', congestion: 'cubic', method: 'live' },
  ...both(congestion => ({ name: `multifd-zstd1-${congestion}`, kind: 'qemu', congestion, multifdLevel: 1 })),
  ...both(congestion => ({ name: `multifd-zstd3-${congestion}`, kind: 'qemu', congestion, multifdLevel: 3 })),
  ...both(congestion => ({ name: `plain-${congestion}`, kind: 'qemu', congestion })),
  ...both(congestion => ({ name: `xbzrle-${congestion}`, kind: 'qemu', congestion, isXbzrle: true })),
  { name: 'godwit-cold', kind: 'godwit', congestion: 'bbr', method: 'cold' },
  ...both(congestion => ({ name: `cold-zstd3-${congestion}`, kind: 'cold', congestion, level: 3 })),
]
