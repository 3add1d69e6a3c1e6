import logging

# PEFT imports bitsandbytes, which warns on a CPU about a kernel that it lacks. Nothing here would use it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
