"""What a person chooses among, and what holds where nobody has chosen.

Command line, settings files, Python calls, recipes and plans have these names and numbers from here. It
imports nothing, since `tunefleet --help` reads it.
"""

from typing import Literal

BackendName = Literal["auto", "torch", "mlx", "llama_cpp", "toy"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]  # auto: what trains fastest on this model
AskedPrecision = Literal["auto", "float32", "bfloat16"]  # what commands offer: float16 loses small gradients
Schedule = Literal["constant", "linear", "cosine"]  # of the learning rate, after the warm-up
EncodingName = Literal["f32", "f16", "int8", "int4"]  # of updates
Space = Literal["product", "factors"]  # what a merge adds up
ProtocolName = Literal["auto", "5", "3.1.1"]  # of MQTT
Enrolment = Literal["open", "closed"]  # open: of any device
Sealing = Literal["hpke", "off"]  # of updates, from a device to its coordinator

RANK, SCALE, TARGETS = 8, 2.0, ("q_proj", "v_proj")  # of a new adapter
LR = 1e-3
CLIP_NORM = 1.0
SEQ_TOKENS, BATCH_TOKENS = 512, 2048
CHECKPOINT_EVERY_S = 60.0
MAX_TOKENS = 128  # of an answer
